"""Fused operators: one public differentiable function each, on `npu` and CPU tensors.

Each has a native CPU kernel (csrc/kernels), a reference composite in torch beside it, and a MindSpore call
for Ascend.
"""

from mindspeed_ms.kernels.backend import force_implementation, force_isa, implementation, isa
from mindspeed_ms.kernels.norm import layer_norm, rms_norm

__all__ = ["force_implementation", "force_isa", "implementation", "isa", "layer_norm", "rms_norm"]
