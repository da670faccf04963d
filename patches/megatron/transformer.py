"""Transformer layers: choices that assume Apex, Transformer Engine or CUDA extensions are there."""

import copy
from typing import Any

import torch
from mindspeed_ms.patches.megatron.norms import with_kernel
from mindspeed_ms.patches.registry import around, replace


@around(
    "megatron.core.transformer.torch_norm:WrappedTorchNorm.__new__",
    reason="it refuses persist_layer_norm (a choice of CUDA kernel, on by default) and sequence parallelism",
)
def torch_norm(
    original: Any,
    cls: type,
    config: Any,
    hidden_size: int,
    eps: float = 1e-5,
    persist_layer_norm: bool = False,
    zero_centered_gamma: bool = False,
    normalization: str = "LayerNorm",
) -> torch.nn.Module:
    """Torch's norm on our kernel, its parameters marked as sequence parallelism wants them marked."""
    plain = copy.copy(config)
    plain.persist_layer_norm = plain.sequence_parallel = False
    norm = original(cls, plain, hidden_size, eps)
    for parameter in norm.parameters():
        parameter.sequence_parallel = config.sequence_parallel
    return with_kernel(norm)


@replace(
    "megatron.core.fusions.fused_softmax:FusedScaleMaskSoftmax.is_kernel_available",
    reason="the CUDA extension scaled_masked_softmax_cuda cannot exist here",
)
def is_kernel_available(self: Any, mask: Any, b: int, np: int, sq: int, sk: int) -> bool:
    """Send every softmax to forward_torch_softmax."""
    return False
