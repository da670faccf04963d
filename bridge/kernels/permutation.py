"""Rows gathered and summed by index: tokens sorted by expert, and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from mindspeed_ms.kernels.backend import dtype_code, implementation, launch, pointer
from mindspeed_ms.kernels.dispatch import choose, on_mindspore
from torch.autograd.function import once_differentiable


class Rows(NamedTuple):
    """Token and expert of each row of a permutation, int64 (rows,): expert by expert, its tokens in order."""

    token: torch.Tensor
    expert: torch.Tensor


def permutation(routing_map: torch.Tensor, capacity: int | None = None, count: int = -1) -> Rows:
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
        limits = (-1 if capacity is None else capacity, wanted)
        addresses = (pointer(marks), pointer(pair[0]), pointer(pair[1]))
        found = launch("moe_rows", marks, *addresses, tokens, experts, *limits)
        rows = Rows(pair[0], pair[1])
    else:
        rows = _permutation_composite(marks, capacity, wanted)
        found = rows.token.shape[0]
    if found < wanted:
        raise ValueError(f"permutation: {wanted} rows wanted of a map with {found}")
    return rows


def _permutation_composite(marks: torch.Tensor, capacity: int | None, wanted: int) -> Rows:
    if capacity is None:
        expert, token = marks.t().nonzero().t()
        return Rows(token[:wanted], expert[:wanted])
    order = marks.t().to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :capacity]
    experts = torch.arange(marks.shape[1], device=marks.device).view(-1, 1).expand_as(order)
    return Rows(order.reshape(-1)[:wanted], experts.reshape(-1)[:wanted])


def gather_rows(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """x[index] for x (n, ...) and int64 index (rows,): (rows, ...). Its gradient sums in fp32, in order."""
    chosen = choose("gather_rows", x)
    if chosen == "mindspore":
        return on_mindspore("gather_rows", x, index)
    if chosen == "composite":
        return x.index_select(0, index)
    return _Gather.apply(x, index)


def combine_rows(
    x: torch.Tensor, index: torch.Tensor, into: int, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """y[t] = sum of x[r] * weights[r] over the rows r with index[r] = t: (into, columns), in x's dtype.

    x: (rows, columns) in fp32, bf16 or fp16; index: int64 (rows,); weights: (rows,), any floating dtype. Sums
    are fp32 and in the order of rows. Differentiable in x and weights.
    """
    if x.dim() != 2 or index.shape != x.shape[:1] or (weights is not None and weights.shape != index.shape):
        raise ValueError(
            f"combine_rows: index {tuple(index.shape)} and weights "
            f"{None if weights is None else tuple(weights.shape)} do not fit x {tuple(x.shape)}"
        )
    chosen = choose("combine_rows", x, weights)
    if chosen == "mindspore":
        return on_mindspore("combine_rows", x, index, into, weights)
    if chosen == "composite":
        wide = x if x.dtype == torch.float64 else x.float()
        rows = wide if weights is None else wide * weights.unsqueeze(-1)
        return rows.new_zeros(into, x.shape[1]).index_add(0, index, rows).to(x.dtype)
    return _Combine.apply(x, index, into, weights)


#: More choices of a token than this the operators on Ascend do not take.
MOST_CHOICES = 512


def permute(
    tokens: torch.Tensor, routing_map: torch.Tensor, count: int = -1
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens (n, hidden) of each expert, one expert after the other, and the map back to the tokens.

    `routing_map` and `count` as in :func:`permutation`. The map back is int64 (2, rows): expert and token of
    each row; where moe_token_permute made the rows it is (3, rows), with the row of token i's choice j at
    i * choices + j.
    """
    rows = permutation(routing_map, count=count)
    back = torch.stack((rows.expert, rows.token))

    def refusal() -> str | None:
        return _irregular(tokens, routing_map, rows.token.shape[0])

    if choose("permute", tokens, refusal=refusal) != "mindspore":
        return gather_rows(tokens, rows.token), back
    experts = routing_map.to(torch.bool).nonzero()[:, 1].to(torch.int32).view(tokens.shape[0], -1)
    permuted, places = on_mindspore("permute", tokens, experts)
    return permuted, torch.cat((back, places.to(torch.int64).unsqueeze(0)))


def _irregular(tokens: torch.Tensor, routing_map: torch.Tensor, rows: int) -> str | None:
    """Why moe_token_permute cannot make these rows, or None; asks the device."""
    if tokens.dim() != 2 or not tokens.numel() or not rows:
        return "the operator takes rows of tokens, and some"
    choices = rows // tokens.shape[0]
    if choices > MOST_CHOICES or not bool((routing_map.to(torch.bool).sum(1) == choices).all()):
        return f"the operator wants as many experts for every token, at most {MOST_CHOICES}"
    return None


def unpermute(
    x: torch.Tensor, back: torch.Tensor, tokens: int, probs: torch.Tensor | None = None
) -> torch.Tensor:
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
    if choose("unpermute", x, by_row, refusal=reason) != "mindspore":
        return combine_rows(x, back[1], tokens, by_row)
    weights = x.new_ones(back.shape[1]) if by_row is None else gather_rows(by_row, back[2])
    return on_mindspore("unpermute", x, back[2].to(torch.int32), weights.view(tokens, -1))


def _columns(x: torch.Tensor) -> int:
    return x[0].numel() if x.shape[0] else 0


def _gather(x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    x, index = x.contiguous(), index.contiguous()
    y = x.new_empty(index.shape[0], *x.shape[1:])
    sizes = (index.shape[0], _columns(x), x.shape[0])
    launch("gather_rows", x, pointer(x), pointer(index), pointer(weights), pointer(y), *sizes, dtype_code(x))
    return y


def _combine(
    x: torch.Tensor, index: torch.Tensor, into: int, weights: torch.Tensor | None = None
) -> torch.Tensor:
    x, index = x.contiguous(), index.contiguous()
    y = x.new_empty(into, *x.shape[1:])
    sizes = (index.shape[0], y[0].numel() if into else 0, into)
    launch("combine_rows", x, pointer(x), pointer(index), pointer(weights), pointer(y), *sizes, dtype_code(x))
    return y


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, index):
        ctx.save_for_backward(index)
        ctx.rows = x.shape[0]
        return _gather(x, index)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return _combine(dy, *ctx.saved_tensors, ctx.rows), None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, index, into, weights):
        wide = None if weights is None else weights.float().contiguous()
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, index, wide)
        ctx.dtype = None if weights is None else weights.dtype
        return _combine(x, index, into, wide)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, index, weights = ctx.saved_tensors
        dx = _gather(dy, index, weights) if ctx.needs_input_grad[0] else None
        dweights = None
        if ctx.needs_input_grad[3]:
            x, dy, index = x.contiguous(), dy.contiguous(), index.contiguous()
            dots = torch.empty(index.shape[0], dtype=torch.float32, device=x.device)
            addresses = (pointer(x), pointer(dy), pointer(index), pointer(dots))
            launch("dot_rows", x, *addresses, *x.shape, dy.shape[0], dtype_code(x))
            dweights = dots.to(ctx.dtype)
        return dx, None, None, dweights
