"""Router of a mixture of experts: scores, the choice of experts, and the losses that keep it balanced."""

from __future__ import annotations

import torch
from mindspeed_ms.kernels.backend import dtype_code, launch, pointer
from mindspeed_ms.kernels.dispatch import choose, on_mindspore
from torch.autograd.function import once_differentiable

#: (score function, softmax before the choice) -> code of csrc/kernels/moe.inl.
SCORES = {("softmax", False): 0, ("softmax", True): 1, ("sigmoid", False): 2, ("sigmoid", True): 2}


def topk_router(
    logits: torch.Tensor,
    topk: int,
    *,
    score_function: str = "softmax",
    pre_softmax: bool = False,
    groups: int | None = None,
    group_topk: int | None = None,
    scaling_factor: float | None = None,
    expert_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and choice of each token's `topk` experts (Megatron's topk_routing_with_score_function).

    logits: (tokens, experts) in fp32, bf16 or fp16, all arithmetic in fp32. Returns probs (tokens, experts)
    in logits' dtype, 0 where not chosen, differentiable, and the bool map of the choice.

    * softmax over the chosen logits, or with `pre_softmax` over all of them before the choice;
      "sigmoid": divided by the sum of the chosen ones, for topk > 1.
    * groups, group_topk: the experts of the `group_topk` best of `groups` equal groups only; a group is as
      good as the sum of its topk / group_topk best (DeepSeek-V2, V3). Both or neither.
    * expert_bias, fp32 (experts,): added to sigmoid scores for the choice only (balancing without a loss).

    Of equal scores the expert with the smaller number is chosen. ValueError for arguments that do not fit.
    """
    code = _check(logits, topk, score_function, pre_softmax, groups, group_topk)
    if expert_bias is not None and score_function != "sigmoid":
        raise ValueError("topk_router: expert_bias goes with sigmoid scores")
    bias = None if expert_bias is None else expert_bias.detach().float().contiguous()
    options = (code, False, topk, groups or 0, group_topk or 0, float(scaling_factor or 1.0))
    chosen = choose("topk_router", logits)
    if chosen == "mindspore":
        return on_mindspore(
            "topk_router",
            logits,
            topk,
            score_function=score_function,
            pre_softmax=pre_softmax,
            groups=groups,
            group_topk=group_topk,
            scaling_factor=scaling_factor,
            expert_bias=bias,
        )
    if chosen == "composite":
        return router_composite(logits, bias, *options)
    return _Router.apply(logits, bias, *options)


def auxiliary_scores(
    logits: torch.Tensor, topk: int, score_function: str = "softmax"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The choice by score alone, and the scores of all experts for the auxiliary loss, fp32, differentiable.

    Megatron's compute_routing_scores_for_aux_loss: softmax, or sigmoids divided by their sum. Arguments as in
    :func:`topk_router`; returns (map, scores).
    """
    code = _check(logits, topk, score_function, True, None, None)
    options = (code, True, topk, 0, 0, 1.0)
    if choose("auxiliary_scores", logits) == "composite":
        scores, chosen = router_composite(logits, None, *options)
    else:
        scores, chosen = _Router.apply(logits, None, *options)
    return chosen, scores


def load_balancing_loss(
    probs: torch.Tensor,
    tokens_per_expert: torch.Tensor,
    total_tokens: float | torch.Tensor,
    topk: int,
    experts: int,
    coefficient: float,
) -> torch.Tensor:
    """coefficient * experts / (topk * total_tokens^2) * sum over experts of probs' sum * tokens_per_expert.

    The auxiliary loss of the Switch Transformer (Fedus et al. 2021) as Megatron's
    switch_load_balancing_loss_func computes it; probs (tokens, experts), tokens_per_expert (experts,).
    """
    share = (probs.sum(dim=0) * tokens_per_expert).sum()
    return share * (experts * coefficient / (topk * total_tokens * total_tokens))


def _check(
    logits: torch.Tensor,
    topk: int,
    score_function: str,
    pre_softmax: bool,
    groups: int | None,
    group_topk: int | None,
) -> int:
    """The code of the score function; ValueError for arguments that do not fit."""
    if logits.dim() != 2 or not 1 <= topk <= logits.shape[1]:
        raise ValueError(f"router: topk {topk} does not fit logits {tuple(logits.shape)} (tokens, experts)")
    if (score_function, pre_softmax) not in SCORES:
        raise ValueError(f"router: unknown score function {score_function!r}; use softmax or sigmoid")
    if bool(groups) != bool(group_topk):
        raise ValueError(f"router: groups {groups} and group_topk {group_topk} go together")
    if groups:
        size = logits.shape[1] // groups
        fits = logits.shape[1] % groups == 0 and group_topk <= groups and group_topk <= topk
        if not fits or topk // group_topk > size or topk > group_topk * size:
            raise ValueError(
                f"router: {group_topk} of {groups} groups do not fit topk {topk} of {logits.shape[1]} experts"
            )
    return SCORES[score_function, pre_softmax]


def router_composite(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    code: int,
    every: bool,
    topk: int,
    groups: int,
    group_topk: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference in torch operators; arguments as the kernel's."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    of_chosen = code == 0 and not every
    scores = wide if of_chosen else torch.sigmoid(wide) if code == 2 else torch.softmax(wide, -1)
    choice = scores.detach() if bias is None else scores.detach() + bias
    if groups:
        by_group = choice.unflatten(-1, (groups, -1))
        quality = by_group.topk(topk // group_topk, -1).values.sum(-1)
        best = torch.zeros_like(quality, dtype=torch.bool)
        best.scatter_(-1, quality.topk(group_topk, -1).indices, True)
        choice = by_group.masked_fill(~best.unsqueeze(-1), -torch.inf).flatten(-2)
    chosen = torch.zeros_like(choice, dtype=torch.bool)
    # Stable, so that of equal scores the first is chosen; NaN counts as largest, as in topk.
    order = choice.sort(dim=-1, descending=True, stable=True).indices
    chosen.scatter_(-1, order[..., :topk], True)
    if of_chosen:
        probs = torch.softmax(wide.masked_fill(~chosen, -torch.inf), -1)
    else:
        probs = scores if every else scores.masked_fill(~chosen, 0.0)
        if code == 2 and (topk > 1 or every):
            probs = probs / (probs.sum(-1, keepdim=True) + 1e-20)
    return (probs * scale).to(wide.dtype if every else logits.dtype), chosen


class _Router(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, bias, code, every, topk, groups, group_topk, scale):
        logits = logits.contiguous()
        probs = torch.empty_like(logits, dtype=torch.float32 if every else logits.dtype)
        chosen = torch.empty_like(logits, dtype=torch.bool)
        launch(
            "router_forward",
            logits,
            code,
            every,
            pointer(logits),
            pointer(bias),
            pointer(probs),
            pointer(chosen),
            *logits.shape,
            topk,
            groups,
            group_topk,
            scale,
            dtype_code(logits),
        )
        ctx.save_for_backward(logits, chosen)
        ctx.options = (code, every, topk, scale)
        ctx.mark_non_differentiable(chosen)
        ctx.set_materialize_grads(False)  # else zeros are made for `chosen`
        return probs, chosen

    @staticmethod
    @once_differentiable
    def backward(ctx, dprobs, _):
        logits, chosen = ctx.saved_tensors
        code, every, topk, scale = ctx.options
        if dprobs is None:
            return (None,) * 8
        dprobs = dprobs.float().contiguous()
        dlogits = torch.empty_like(logits)
        launch(
            "router_backward",
            logits,
            code,
            every,
            pointer(dprobs),
            pointer(logits),
            pointer(chosen),
            pointer(dlogits),
            *logits.shape,
            topk,
            scale,
            dtype_code(logits),
        )
        return dlogits, None, None, None, None, None, None, None
