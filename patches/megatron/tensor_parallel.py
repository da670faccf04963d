"""Tensor parallelism: the weight-gradient extension that Megatron takes from Apex, recompute without fp8."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from mindspeed_ms.patches.registry import around
from mindspeed_ms.patches.stand_ins import Provided, provide


@around(
    "megatron.core.tensor_parallel.random:CheckpointWithoutOutput.__init__",
    reason="its default, fp8=False, counts as fp8, and then it calls Transformer Engine",
    versions=">=0.13,<0.17",
)
def checkpoint_without_output(original: Callable[..., None], self: Any, fp8: Any = False) -> None:
    """Recompute without fp8 state, which no run has here."""
    original(self, None)


def weight_gradient_extension(module: ModuleType) -> None:
    """Give the module the two functions of Apex's extension, on our kernel."""
    from mindspeed_ms.kernels.weight_gradient import accumulate_weight_gradient

    module.wgrad_gemm_accum_fp32 = module.wgrad_gemm_accum_fp16 = accumulate_weight_gradient


provide(
    Provided(
        "fused_weight_gradient_mlp_cuda",
        weight_gradient_extension,
        "gradient_accumulation_fusion, on by default, refuses to start without it",
    )
)
