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
    if chosen == "ascend":
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
    if chosen == "ascend":
        return on_mindspore("combine_rows", x, index, into, weights)
    if chosen == "composite":
        wide = x if x.dtype == torch.float64 else x.float()
        rows = wide if weights is None else wide * weights.unsqueeze(-1)
        return rows.new_zeros(into, x.shape[1]).index_add(0, index, rows).to(x.dtype)
    return _Combine.apply(x, index, into, weights)


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
