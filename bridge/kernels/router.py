"""Router of a mixture of experts: scores, the choice of experts, and the losses that keep it balanced."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from mindspeed_ms._native.kernels import ROUTER_SCORES
from mindspeed_ms.kernels.backend import dtype_code, native, pointer
from mindspeed_ms.kernels.operator import Gradient, Operator, cast, fake_like, gradients, mindspore_gradients

Tensor = torch.Tensor

_OF_CHOSEN, _OF_ALL, _SIGMOID = (
    ROUTER_SCORES[name] for name in ("softmax_of_chosen", "softmax_of_all", "sigmoid")
)
#: (score function, softmax before the choice) -> code.
SCORES = {
    ("softmax", False): _OF_CHOSEN,
    ("softmax", True): _OF_ALL,
    ("sigmoid", False): _SIGMOID,
    ("sigmoid", True): _SIGMOID,
}


def topk_router(
    logits: Tensor,
    topk: int,
    *,
    score_function: str = "softmax",
    pre_softmax: bool = False,
    groups: int | None = None,
    group_topk: int | None = None,
    scaling_factor: float | None = None,
    expert_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
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
    scale = float(scaling_factor or 1.0)
    return _ROUTER(logits, bias, code, topk, groups or 0, group_topk or 0, scale)


def auxiliary_scores(logits: Tensor, topk: int, score_function: str = "softmax") -> tuple[Tensor, Tensor]:
    """The choice by score alone, and the scores of all experts for the auxiliary loss, fp32, differentiable.

    Megatron's compute_routing_scores_for_aux_loss: softmax, or sigmoids divided by their sum. Arguments as in
    :func:`topk_router`; returns (map, scores).
    """
    code = _check(logits, topk, score_function, True, None, None)
    scores, chosen = _SCORES(logits, None, code, topk, 0, 0, 1.0)
    return chosen, scores


def load_balancing_loss(
    probs: Tensor,
    tokens_per_expert: Tensor,
    total_tokens: float | Tensor,
    topk: int,
    experts: int,
    coefficient: float,
) -> Tensor:
    """coefficient * experts / (topk * total_tokens^2) * sum over experts of probs' sum * tokens_per_expert.

    The auxiliary loss of the Switch Transformer (Fedus et al. 2021) as Megatron's
    switch_load_balancing_loss_func computes it; probs (tokens, experts), tokens_per_expert (experts,).
    """
    share = (probs.sum(dim=0) * tokens_per_expert).sum()
    return share * (experts * coefficient / (topk * total_tokens * total_tokens))


def _check(
    logits: Tensor,
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
    if groups and group_topk:
        size = logits.shape[1] // groups
        fits = logits.shape[1] % groups == 0 and group_topk <= groups and group_topk <= topk
        if not fits or topk // group_topk > size or topk > group_topk * size:
            raise ValueError(
                f"router: {group_topk} of {groups} groups do not fit topk {topk} of {logits.shape[1]} experts"
            )
    return SCORES[score_function, pre_softmax]


def _check_chosen(
    logits: Tensor, bias: Tensor | None, code: int, topk: int, groups: int, group_topk: int, scale: float
) -> None:
    if logits.dim() != 2 or not 1 <= topk <= logits.shape[1] or code not in SCORES.values():
        raise ValueError(f"router: topk {topk} does not fit logits {tuple(logits.shape)} (tokens, experts)")
    if bias is not None and bias.shape != logits.shape[1:]:
        raise ValueError(f"router: bias {tuple(bias.shape)} does not fit logits {tuple(logits.shape)}")
    if groups and (logits.shape[1] % groups or not 1 <= group_topk <= groups):
        raise ValueError(f"router: {group_topk} of {groups} groups do not fit {logits.shape[1]} experts")


# ---- composite; `every`: scores of all experts are wanted, not probabilities of the chosen ones


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _scores(wide: Tensor, code: int, every: bool) -> Tensor:
    """By which experts are chosen."""
    if code == _OF_CHOSEN and not every:
        return wide
    return torch.sigmoid(wide) if code == _SIGMOID else torch.softmax(wide, -1)


def _composite(
    every: bool,
    logits: Tensor,
    bias: Tensor | None,
    code: int,
    topk: int,
    groups: int,
    group_topk: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    choice = _scores(_wide(logits), code, every)
    if bias is not None:
        choice = choice + bias
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
    return _probabilities(every, logits, chosen, code, topk, scale), chosen


def _probabilities(every: bool, logits: Tensor, chosen: Tensor, code: int, topk: int, scale: float) -> Tensor:
    wide = _wide(logits)
    if code == _OF_CHOSEN and not every:
        probs = torch.softmax(wide.masked_fill(~chosen, -torch.inf), -1)
    else:
        probs = _scores(wide, code, every)
        probs = probs if every else probs.masked_fill(~chosen, 0.0)
        if code == _SIGMOID and (topk > 1 or every):
            probs = probs / (probs.sum(-1, keepdim=True) + 1e-20)
    return (probs * scale).to(wide.dtype if every else logits.dtype)


def _composite_backward(
    every: bool, dprobs: Tensor, logits: Tensor, chosen: Tensor, code: int, topk: int, scale: float
) -> Tensor:
    return gradients(lambda x: _probabilities(every, x, chosen, code, topk, scale), (logits,), (dprobs,))[0]


# ---- csrc


def _csrc(
    every: bool,
    logits: Tensor,
    bias: Tensor | None,
    code: int,
    topk: int,
    groups: int,
    group_topk: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    logits = logits.contiguous()
    probs, chosen = _fake(every, logits)
    native().router_forward(
        score=code,
        all=every,
        logits=pointer(logits),
        bias=pointer(bias),
        probs=pointer(probs),
        chosen=pointer(chosen),
        tokens=logits.shape[0],
        experts=logits.shape[1],
        topk=topk,
        groups=groups,
        group_topk=group_topk,
        scale=scale,
        dtype=dtype_code(logits),
    )
    return probs, chosen


def _csrc_backward(
    every: bool, dprobs: Tensor, logits: Tensor, chosen: Tensor, code: int, topk: int, scale: float
) -> Tensor:
    logits, dprobs = logits.contiguous(), dprobs.float().contiguous()
    dlogits = torch.empty_like(logits)
    native().router_backward(
        score=code,
        all=every,
        dprobs=pointer(dprobs),
        logits=pointer(logits),
        chosen=pointer(chosen),
        dlogits=pointer(dlogits),
        tokens=logits.shape[0],
        experts=logits.shape[1],
        topk=topk,
        scale=scale,
        dtype=dtype_code(logits),
    )
    return dlogits


# ---- MindSpore: TopkExt, Scatter, Softmax, Sigmoid


def _mindspore_scores(wide: Any, code: int, every: bool) -> Any:
    from mindspore import mint

    if code == _OF_CHOSEN and not every:
        return wide
    return mint.sigmoid(wide) if code == _SIGMOID else mint.nn.functional.softmax(wide, -1)


def _mindspore(
    every: bool, logits: Any, bias: Any, code: int, topk: int, groups: int, group_topk: int, scale: float
) -> tuple[Any, Any]:
    import mindspore as ms
    from mindspore import mint

    def marked(like: Any, index: Any) -> Any:
        return mint.scatter(mint.zeros(like.shape, dtype=ms.bool_), 1, index, True)

    choice = _mindspore_scores(cast(logits, ms.float32), code, every)
    if bias is not None:
        choice = choice + bias
    if groups:
        tokens, experts = choice.shape
        shape = (tokens, groups, experts // groups)
        quality = mint.topk(choice.reshape(shape), topk // group_topk, -1)[0].sum(-1)
        best = marked(quality, mint.topk(quality, group_topk, -1)[1])
        kept = best.reshape((tokens, groups, 1)).broadcast_to(shape).reshape(choice.shape)
        choice = choice.masked_fill(mint.logical_not(kept), float("-inf"))
    chosen = marked(choice, mint.topk(choice, topk, -1)[1])
    return _mindspore_probabilities(every, logits, chosen, code, topk, scale), chosen


def _mindspore_probabilities(
    every: bool, logits: Any, chosen: Any, code: int, topk: int, scale: float
) -> Any:
    import mindspore as ms
    from mindspore import mint

    wide = cast(logits, ms.float32)
    if code == _OF_CHOSEN and not every:
        probs = mint.nn.functional.softmax(wide.masked_fill(mint.logical_not(chosen), float("-inf")), -1)
    else:
        probs = _mindspore_scores(wide, code, every)
        probs = probs if every else probs.masked_fill(mint.logical_not(chosen), 0.0)
        if code == _SIGMOID and (topk > 1 or every):
            probs = probs / (probs.sum(-1, keepdim=True) + 1e-20)
    return (probs * scale).to(ms.float32 if every else logits.dtype)


def _mindspore_backward(
    every: bool, dprobs: Any, logits: Any, chosen: Any, code: int, topk: int, scale: float
) -> Any:
    return mindspore_gradients(
        lambda x: _mindspore_probabilities(every, x, chosen, code, topk, scale), (logits,), (dprobs,)
    )[0]


# ---- operators


def _fake(every: bool, logits: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    chosen = torch.empty(logits.shape, dtype=torch.bool, device=logits.device)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return torch.empty_like(chosen, dtype=wide if every else logits.dtype), chosen


def _save(ctx: Any, args: tuple[Any, ...], results: tuple[Tensor, Tensor]) -> None:
    logits, _, code, topk, _, _, scale = args
    ctx.save_for_backward(logits, results[1])
    ctx.options = (code, topk, scale)
    ctx.mark_non_differentiable(results[1])


def _gradient(backward: Operator, ctx: Any, dprobs: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    dlogits = None if dprobs is None else backward(dprobs, *ctx.saved_tensors, *ctx.options)
    return dlogits, *(None,) * 6


def _declared(name: str, every: bool) -> Operator:
    backward = Operator(
        f"{name}_backward(Tensor dprobs, Tensor logits, Tensor chosen, int code, int topk, float scale) "
        "-> Tensor",
        decides=("logits",),
        fake=lambda dprobs, logits, *_: fake_like(logits),
        composite=partial(_composite_backward, every),
        csrc=partial(_csrc_backward, every),
        mindspore=partial(_mindspore_backward, every),
    )
    return Operator(
        f"{name}(Tensor logits, Tensor? bias, int code, int topk, int groups, int group_topk, float scale) "
        "-> (Tensor, Tensor)",
        decides=("logits",),
        fake=partial(_fake, every),
        composite=partial(_composite, every),
        csrc=partial(_csrc, every),
        mindspore=partial(_mindspore, every),
        check=_check_chosen,
        gradient=Gradient(_save, partial(_gradient, backward)),
    )


_ROUTER = _declared("topk_router", every=False)
_SCORES = _declared("auxiliary_scores", every=True)
