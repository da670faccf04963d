"""Apex's extension for ``gradient_accumulation_fusion``: both of its functions are our kernel."""

from mindspeed_ms.kernels.weight_gradient import accumulate_weight_gradient

wgrad_gemm_accum_fp32 = wgrad_gemm_accum_fp16 = accumulate_weight_gradient
