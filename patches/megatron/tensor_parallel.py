"""Tensor-parallel layers: the weight-gradient extension that Megatron takes from Apex."""

from types import ModuleType

from mindspeed_ms.patches.stand_ins import Provided, provide


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
