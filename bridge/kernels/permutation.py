"""Rows gathered and summed by index: tokens sorted by expert, and back."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from mindspeed_ms.kernels.backend import dtype_code, native, pointer
from mindspeed_ms.kernels.operator import Gradient, Operator, fake_like, gradients
from mindspeed_ms.routes import choose, counted, implementation

Tensor = torch.Tensor


class Rows(NamedTuple):
    """Token and expert of each row of a permutation, int64 (rows,): expert by expert, its tokens in order."""

    token: Tensor
    expert: Tensor


def permutation(routing_map: Tensor, capacity: int | None = None, count: int = -1) -> Rows:
    """The rows that a map (tokens, experts), bool or integers, nonzero = routed, asks for.

    With `capacity` every expert has that many rows (at most all tokens): its own tokens first, then others
    (Megatron's drop and pad, where the map holds that many each). `count` is the number of rows to make,
    where the caller knows it (-1: all of them); ValueError if the map has fewer.
    """
    if routing_map.dim() != 2:
        raise ValueError(f"permutation: the map {tuple(routing_map.shape)} is not (tokens, experts)")
    tokens, experts = routing_map.shape
    marks = routing_map.to(torch.bool).contiguous()
    wanted = count
    if count < 0:
        wanted = int(marks.sum()) if capacity is None else experts * min(capacity, tokens)
    # Kernels are chosen by floating dtypes; what matters here is where the map lies.
    if implementation(marks.new_empty(0, dtype=torch.float32)) == "csrc":
        pair = torch.empty(2, wanted, dtype=torch.int64, device=marks.device)
        with counted("moe_rows", marks):
            found = native().moe_rows(
                map=pointer(marks),
                token_of_row=pointer(pair[0]),
                expert_of_row=pointer(pair[1]),
                tokens=tokens,
                experts=experts,
                capacity=-1 if capacity is None else capacity,
                limit=wanted,
            )
        rows = Rows(pair[0], pair[1])
    else:
        rows = _permutation_composite(marks, capacity, wanted)
        found = rows.token.shape[0]
    if found < wanted:
        raise ValueError(f"permutation: {wanted} rows wanted of a map with {found}")
    return rows


def _permutation_composite(marks: Tensor, capacity: int | None, wanted: int) -> Rows:
    if capacity is None:
        expert, token = marks.t().nonzero().t()
        return Rows(token[:wanted], expert[:wanted])
    order = marks.t().to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :capacity]
    experts = torch.arange(marks.shape[1], device=marks.device).view(-1, 1).expand_as(order)
    return Rows(order.reshape(-1)[:wanted], experts.reshape(-1)[:wanted])


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """x[index] for x (n, ...) and int64 index (rows,): (rows, ...). Its gradient sums in fp32, in order."""
    return _GATHER(x, index, None)


def combine_rows(x: Tensor, index: Tensor, into: int, weights: Tensor | None = None) -> Tensor:
    """y[t] = sum of x[r] * weights[r] over the rows r with index[r] = t: (into, columns), in x's dtype.

    x: (rows, columns) in fp32, bf16 or fp16; index: int64 (rows,); weights: (rows,), any floating dtype. Sums
    are fp32 and in the order of rows. Differentiable in x and weights.
    """
    return _COMBINE(x, index, weights, into)


def _check(name: str, x: Tensor, index: Tensor, weights: Tensor | None, *into: int) -> None:
    """`into`: the number of results of combine_rows, whose index has one for each row of x."""
    fits = index.dim() == 1 and index.dtype == torch.int64 and x.dim() > 0
    fits = fits and (not into or index.shape == x.shape[:1])
    if not fits or (weights is not None and weights.shape != index.shape):
        raise ValueError(
            f"{name}: index {tuple(index.shape)} {index.dtype} and weights "
            f"{None if weights is None else tuple(weights.shape)} do not fit x {tuple(x.shape)}"
        )


#: More choices of a token than this the operators on Ascend do not take.
MOST_CHOICES = 512


def permute(tokens: Tensor, routing_map: Tensor, count: int = -1) -> tuple[Tensor, Tensor]:
    """The tokens (n, hidden) of each expert, one expert after the other, and the map back to the tokens.

    `routing_map` and `count` as in :func:`permutation`. The map back is int64 (2, rows): expert and token of
    each row; where moe_token_permute made the rows it is (3, rows), with the row of token i's choice j at
    i * choices + j.
    """
    rows = permutation(routing_map, count=count)
    back = torch.stack((rows.expert, rows.token))

    def refusal() -> str | None:
        return _irregular(tokens, routing_map, rows.token.shape[0])

    if choose("permute", tokens, refusal=refusal)[0] != "mindspore":
        return gather_rows(tokens, rows.token), back
    experts = routing_map.to(torch.bool).nonzero()[:, 1].to(torch.int32).view(tokens.shape[0], -1)
    permuted, places = _PERMUTE(tokens, experts)
    return permuted, torch.cat((back, places.to(torch.int64).unsqueeze(0)))


def _irregular(tokens: Tensor, routing_map: Tensor, rows: int) -> str | None:
    """Why moe_token_permute cannot make these rows, or None; asks the device."""
    if tokens.dim() != 2 or not tokens.numel() or not rows:
        return "the operator takes rows of tokens, and some"
    choices = rows // tokens.shape[0]
    if choices > MOST_CHOICES or not bool((routing_map.to(torch.bool).sum(1) == choices).all()):
        return f"the operator wants as many experts for every token, at most {MOST_CHOICES}"
    return None


def unpermute(x: Tensor, back: Tensor, tokens: int, probs: Tensor | None = None) -> Tensor:
    """Each token's rows of x (rows, columns) summed, weighted with `probs` (tokens, experts) where given.

    `back`: the map that :func:`permute` gave with the rows. The result is (tokens, columns), summed in fp32.
    """
    by_row = None
    if probs is not None:
        by_row = gather_rows(probs.reshape(-1), back[1] * probs.shape[1] + back[0])
    reasons = (
        (back.shape[0] == 2, "the operator takes rows as moe_token_permute made them"),
        (by_row is not None and by_row.dtype != x.dtype, "the operator takes weights of the rows' dtype"),
    )
    reason = next((why for refused, why in reasons if refused), None)
    if choose("unpermute", x, by_row, refusal=reason)[0] != "mindspore":
        return combine_rows(x, back[1], tokens, by_row)
    weights = x.new_ones(back.shape[1]) if by_row is None else gather_rows(by_row, back[2])
    return _UNPERMUTE(x, back[2].to(torch.int32), weights.view(tokens, -1))


# ---- gather_rows and combine_rows, each the other's gradient; _dots makes that of the weights


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _gather_composite(x: Tensor, index: Tensor, weights: Tensor | None) -> Tensor:
    rows = x.index_select(0, index)
    return rows if weights is None else (_wide(rows) * weights.unsqueeze(-1)).to(x.dtype)


def _combine_composite(x: Tensor, index: Tensor, weights: Tensor | None, into: int) -> Tensor:
    rows = _wide(x)
    if weights is not None:
        rows = rows * weights.view(-1, *(1,) * (x.dim() - 1))
    return rows.new_zeros(into, *x.shape[1:]).index_add(0, index, rows).to(x.dtype)


def _dots_composite(x: Tensor, dy: Tensor, index: Tensor) -> Tensor:
    return (_wide(x) * _wide(dy).index_select(0, index)).sum(-1)


def _gather_csrc(x: Tensor, index: Tensor, weights: Tensor | None) -> Tensor:
    x, index = x.contiguous(), index.contiguous()
    weights = None if weights is None else weights.float().contiguous()
    y = x.new_empty(index.shape[0], *x.shape[1:])
    native().gather_rows(
        x=pointer(x),
        index=pointer(index),
        weight=pointer(weights),
        y=pointer(y),
        rows=index.shape[0],
        cols=x[0].numel() if x.shape[0] else 0,
        x_rows=x.shape[0],
        dtype=dtype_code(x),
    )
    return y


def _combine_csrc(x: Tensor, index: Tensor, weights: Tensor | None, into: int) -> Tensor:
    x, index = x.contiguous(), index.contiguous()
    weights = None if weights is None else weights.float().contiguous()
    y = x.new_empty(into, *x.shape[1:])
    native().combine_rows(
        x=pointer(x),
        index=pointer(index),
        weight=pointer(weights),
        y=pointer(y),
        rows=index.shape[0],
        cols=y[0].numel() if into else 0,
        y_rows=into,
        dtype=dtype_code(x),
    )
    return y


def _dots_csrc(x: Tensor, dy: Tensor, index: Tensor) -> Tensor:
    x, dy, index = x.contiguous(), dy.contiguous(), index.contiguous()
    dots = torch.empty(index.shape[0], dtype=torch.float32, device=x.device)
    native().dot_rows(
        a=pointer(x),
        b=pointer(dy),
        index=pointer(index),
        dots=pointer(dots),
        rows=x.shape[0],
        cols=x.shape[1],
        b_rows=dy.shape[0],
        dtype=dtype_code(x),
    )
    return dots


def _gather_mindspore(x: Any, index: Any, weights: Any) -> Any:
    from mindspore import mint

    rows = mint.index_select(x, 0, index)
    return rows if weights is None else _weighted(rows, weights).to(x.dtype)


def _combine_mindspore(x: Any, index: Any, weights: Any, into: int) -> Any:
    import mindspore as ms
    from mindspore import mint

    rows = x.to(ms.float32) if weights is None else _weighted(x, weights)
    base = mint.zeros((into, *x.shape[1:]), dtype=ms.float32)
    return mint.index_add(base, 0, index, rows).to(x.dtype)


def _weighted(rows: Any, weights: Any) -> Any:
    import mindspore as ms

    return rows.to(ms.float32) * weights.to(ms.float32).reshape((-1, *(1,) * (rows.ndim - 1)))


def _dots_mindspore(x: Any, dy: Any, index: Any) -> Any:
    import mindspore as ms
    from mindspore import mint

    return (x.to(ms.float32) * mint.index_select(dy, 0, index).to(ms.float32)).sum(-1)


def _save_gather(ctx: Any, args: tuple[Any, ...], y: Tensor) -> None:
    x, index, weights = args
    if weights is not None:
        raise NotImplementedError("gather_rows has no gradient where rows are weighted; use combine_rows")
    ctx.save_for_backward(index)
    ctx.rows = x.shape[0]


def _gather_gradient(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
    return None if dy is None else _COMBINE(dy, *ctx.saved_tensors, None, ctx.rows), None, None


def _save_combine(ctx: Any, args: tuple[Any, ...], y: Tensor) -> None:
    x, index, weights, _ = args
    ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, index, weights)


def _combine_gradient(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
    x, index, weights = ctx.saved_tensors
    dx = dweights = None
    if dy is not None and ctx.needs_input_grad[0]:
        dx = _GATHER(dy, index, None if weights is None else weights.detach())
    if dy is not None and ctx.needs_input_grad[2]:
        dweights = _DOTS(x.detach(), dy, index).to(weights.dtype)
    return dx, None, dweights, None


_DOTS = Operator(
    "dot_rows(Tensor x, Tensor dy, Tensor index) -> Tensor",
    decides=("x", "dy"),
    fake=lambda x, dy, index: _wide(x).new_empty(index.shape[0]),
    composite=_dots_composite,
    csrc=_dots_csrc,
    mindspore=_dots_mindspore,
)

_GATHER = Operator(
    "gather_rows(Tensor x, Tensor index, Tensor? weights) -> Tensor",
    decides=("x", "weights"),
    fake=lambda x, index, weights: x.new_empty(index.shape[0], *x.shape[1:]),
    composite=_gather_composite,
    csrc=_gather_csrc,
    mindspore=_gather_mindspore,
    check=partial(_check, "gather_rows"),
    gradient=Gradient(_save_gather, _gather_gradient),
)

_COMBINE = Operator(
    "combine_rows(Tensor x, Tensor index, Tensor? weights, SymInt into) -> Tensor",
    decides=("x", "weights"),
    fake=lambda x, index, weights, into: x.new_empty(into, *x.shape[1:]),
    composite=_combine_composite,
    csrc=_combine_csrc,
    mindspore=_combine_mindspore,
    check=partial(_check, "combine_rows"),
    gradient=Gradient(_save_combine, _combine_gradient),
)


# ---- ops.moe_token_permute and moe_token_unpermute, for as many experts for every token; csrc kernels take
# any map by gather_rows and combine_rows


def _permute_composite(tokens: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
    order = experts.reshape(-1).argsort(stable=True)
    places = order.argsort().to(torch.int32)
    return tokens.index_select(0, order // experts.shape[1]), places


def _permute_mindspore(tokens: Any, experts: Any) -> tuple[Any, Any]:
    from mindspore import ops

    return ops.moe_token_permute(tokens, experts)


def _permute_backward_composite(dy: Tensor, places: Tensor, topk: int) -> Tensor:
    return _wide(dy).index_select(0, places).view(-1, topk, dy.shape[1]).sum(1).to(dy.dtype)


def _permute_backward_mindspore(dy: Any, places: Any, topk: int) -> Any:
    from mindspore.ops import auto_generate

    return auto_generate.moe_token_permute_grad_op(dy, places, topk)


def _unpermute_composite(rows: Tensor, places: Tensor, probs: Tensor) -> Tensor:
    chosen = _wide(rows).index_select(0, places).view(*probs.shape, rows.shape[1])
    return (chosen * probs.unsqueeze(-1)).sum(1).to(rows.dtype)


def _unpermute_mindspore(rows: Any, places: Any, probs: Any) -> Any:
    # Without probs the operator takes topk for 1 and sums nothing.
    from mindspore import ops

    return ops.moe_token_unpermute(rows, places, probs)


def _unpermute_backward_composite(
    dy: Tensor, rows: Tensor, places: Tensor, probs: Tensor
) -> tuple[Tensor, Tensor]:
    found = gradients(lambda r, p: _unpermute_composite(r, places, p), (rows, probs), (dy,))
    return found[0], found[1]


def _unpermute_backward_mindspore(dy: Any, rows: Any, places: Any, probs: Any) -> tuple[Any, Any]:
    from mindspore.ops import auto_generate

    return auto_generate.moe_token_unpermute_grad(rows, dy, places, probs, False, None)


def _save_permute(ctx: Any, args: tuple[Any, ...], results: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(results[1])
    ctx.topk = args[1].shape[1]
    ctx.mark_non_differentiable(results[1])


def _permute_gradient(ctx: Any, dy: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    return None if dy is None else _PERMUTE_BACKWARD(dy, *ctx.saved_tensors, ctx.topk), None


def _save_unpermute(ctx: Any, args: tuple[Any, ...], y: Tensor) -> None:
    ctx.save_for_backward(*args)


def _unpermute_gradient(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
    drows, dprobs = (None, None) if dy is None else _UNPERMUTE_BACKWARD(dy, *ctx.saved_tensors)
    return drows, None, dprobs


_PERMUTE_BACKWARD = Operator(
    "permute_backward(Tensor dy, Tensor places, SymInt topk) -> Tensor",
    decides=("dy",),
    fake=lambda dy, places, topk: dy.new_empty(places.shape[0] // topk, dy.shape[1]),
    composite=_permute_backward_composite,
    mindspore=_permute_backward_mindspore,
)

_PERMUTE = Operator(
    "permute(Tensor tokens, Tensor experts) -> (Tensor rows, Tensor places)",
    decides=("tokens",),
    fake=lambda tokens, experts: (
        tokens.new_empty(experts.numel(), tokens.shape[1]),
        experts.new_empty(experts.numel(), dtype=torch.int32),
    ),
    composite=_permute_composite,
    mindspore=_permute_mindspore,
    gradient=Gradient(_save_permute, _permute_gradient),
)

_UNPERMUTE_BACKWARD = Operator(
    "unpermute_backward(Tensor dy, Tensor rows, Tensor places, Tensor probs) -> (Tensor, Tensor)",
    decides=("rows",),
    fake=lambda dy, rows, places, probs: (fake_like(rows), fake_like(probs)),
    composite=_unpermute_backward_composite,
    mindspore=_unpermute_backward_mindspore,
)

_UNPERMUTE = Operator(
    "unpermute(Tensor rows, Tensor places, Tensor probs) -> Tensor",
    decides=("rows",),
    fake=lambda rows, places, probs: rows.new_empty(probs.shape[0], rows.shape[1]),
    composite=_unpermute_composite,
    mindspore=_unpermute_mindspore,
    gradient=Gradient(_save_unpermute, _unpermute_gradient),
)
