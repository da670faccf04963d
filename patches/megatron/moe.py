"""Mixture of experts: what Megatron does only with Transformer Engine, on our kernels."""

from typing import Any

import torch
from mindspeed_ms.patches.registry import around, replace
from mindspeed_ms.routes import takes

ROUTER_GATING = "megatron.core.transformer.moe.moe_utils:router_gating_linear"
REASON = "without Transformer Engine it reads the undefined name te_general_gemm"


@replace(ROUTER_GATING, reason=REASON, versions=">=0.13,<0.15")
def router_gating_linear_without_bias(
    inp: torch.Tensor, weight: torch.Tensor, router_dtype: torch.dtype
) -> torch.Tensor:
    """Router logits ``[..., num_experts]`` in ``router_dtype`` from ``inp [..., hidden]``."""
    return router_gating_linear(inp, weight, None, router_dtype)


@replace(ROUTER_GATING, reason=REASON, versions=">=0.15")
def router_gating_linear(
    inp: torch.Tensor, weight: torch.Tensor, bias: Any, router_dtype: torch.dtype
) -> torch.Tensor:
    """Router logits ``[..., num_experts]`` in ``router_dtype`` from ``inp [..., hidden]``."""
    bias = None if bias is None else bias.to(router_dtype)
    return torch.nn.functional.linear(inp.to(router_dtype), weight.to(router_dtype), bias)


FUSED = "Megatron takes its fused router from Transformer Engine 2.7"
SCORES = ("softmax", "sigmoid")
"""The score functions that our kernels know."""


@around(
    "megatron.core.transformer.moe.moe_utils:topk_routing_with_score_function",
    reason=FUSED,
    versions=">=0.14",
)
def topk_routing(
    original: Any,
    logits: torch.Tensor,
    topk: int,
    use_pre_softmax: bool = False,
    num_groups: int | None = None,
    group_topk: int | None = None,
    scaling_factor: float | None = None,
    score_function: str = "softmax",
    expert_bias: torch.Tensor | None = None,
    fused: bool = False,
    *choice: Any,
    **named_choice: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and map ``[tokens, experts]`` of the chosen experts.

    ``moe_router_fusion`` asks for the kernel; it computes in float32 whatever the dtype of the logits. What
    the kernel does not take (float64, a score function of a later release; in ``choice`` a replayed one,
    0.17's dense result ``[tokens, topk]``, 0.19's indices from outside), and route host, goes Megatron's
    unfused way.
    """
    from mindspeed_ms.kernels import topk_router

    options = (topk, use_pre_softmax, num_groups, group_topk, scaling_factor, score_function, expert_bias)
    chosen = any(v is not None and v is not False for v in (*choice, *named_choice.values()))
    if not fused or chosen or score_function not in SCORES or not takes(logits):
        return original(logits, *options, False, *choice, **named_choice)
    return topk_router(
        logits,
        topk,
        score_function=score_function,
        pre_softmax=use_pre_softmax and score_function == "softmax",
        groups=num_groups if group_topk else None,
        group_topk=group_topk,
        scaling_factor=scaling_factor,
        # As Megatron does, who knows no bias for softmax.
        expert_bias=expert_bias if score_function == "sigmoid" else None,
    )


@around(
    "megatron.core.transformer.moe.moe_utils:compute_routing_scores_for_aux_loss",
    reason=FUSED,
    versions=">=0.14",
)
def scores_for_auxiliary_loss(
    original: Any,
    logits: torch.Tensor,
    topk: int,
    score_function: str,
    fused: bool = False,
    *padding: Any,
    **named_padding: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Map of the choice by score alone and the normalised scores ``[tokens, experts]`` of all experts.

    ``padding``: Megatron-Core 0.16's ``padding_mask [tokens]``, True where a token counts for nothing.
    """
    from mindspeed_ms.kernels import auxiliary_scores

    if not fused or score_function not in SCORES or not takes(logits):
        return original(logits, topk, score_function, False, *padding, **named_padding)
    chosen, scores = auxiliary_scores(logits, topk, score_function)
    mask = padding[0] if padding else named_padding.get("padding_mask")
    if mask is None:
        return chosen, scores
    valid = ~mask.unsqueeze(-1)
    return chosen * valid, scores * valid


@around(
    "megatron.core.transformer.moe.moe_utils:switch_load_balancing_loss_func",
    reason=FUSED,
    versions=">=0.14",
)
def load_balancing_loss(
    original: Any,
    probs: torch.Tensor,
    tokens_per_expert: torch.Tensor,
    total_num_tokens: Any,
    topk: int,
    num_experts: int,
    moe_aux_loss_coeff: float,
    fused: bool = False,
    *padding: Any,
    **named_padding: Any,
) -> torch.Tensor:
    """The auxiliary loss; fused or not, it is one sum over the tokens and one over the experts."""
    options = (topk, num_experts, moe_aux_loss_coeff, False, *padding)
    return original(probs, tokens_per_expert, total_num_tokens, *options, **named_padding)
