"""Mixture of experts: what Megatron does only with Transformer Engine."""

from typing import Any

import torch
from mindspeed_ms.patches.registry import replace

ROUTER_GATING = "megatron.core.transformer.moe.moe_utils:router_gating_linear"
REASON = "without Transformer Engine it reads the undefined name te_general_gemm"


@replace(ROUTER_GATING, reason=REASON, versions=">=0.13,<0.15")
def router_gating_linear_without_bias(
    inp: torch.Tensor, weight: torch.Tensor, router_dtype: torch.dtype
) -> torch.Tensor:
    """Router logits ``[..., num_experts]`` in ``router_dtype`` from ``inp [..., hidden]``."""
    return router_gating_linear(inp, weight, None, router_dtype)


@replace(ROUTER_GATING, reason=REASON, versions=">=0.15,<0.17")
def router_gating_linear(
    inp: torch.Tensor, weight: torch.Tensor, bias: Any, router_dtype: torch.dtype
) -> torch.Tensor:
    """Router logits ``[..., num_experts]`` in ``router_dtype`` from ``inp [..., hidden]``."""
    bias = None if bias is None else bias.to(router_dtype)
    return torch.nn.functional.linear(inp.to(router_dtype), weight.to(router_dtype), bias)
