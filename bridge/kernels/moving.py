"""Filling and joining tensors: what moves bytes and computes nothing, for any dtype."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from mindspeed_ms.kernels.backend import native, pointer

Tensor = torch.Tensor


def zero_(x: Tensor) -> Tensor:
    """aten::zero_ of contiguous x."""
    native().zero(pointer(x), x.nbytes)
    return x


def zero(x: Tensor) -> Tensor:
    """aten::zero: zeros like contiguous x."""
    return zero_(torch.empty_like(x))


def joins(tensors: Sequence[Tensor], dim: int) -> bool:
    """Whether `cat` takes these: at least one dimension, equal shapes but for `dim`, one dtype."""
    first = tensors[0]
    if not -first.dim() <= dim < first.dim():
        return False
    dim %= first.dim()

    def rest(t: Tensor) -> tuple[int, ...]:
        return (*t.shape[:dim], *t.shape[dim + 1 :])

    return all(t.dim() == first.dim() and t.dtype == first.dtype and rest(t) == rest(first) for t in tensors)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """aten::cat of contiguous tensors that :func:`joins` accepts."""
    first = tensors[0]
    dim %= first.dim()
    shape = list(first.shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    out = torch.empty(shape, dtype=first.dtype, device=first.device)
    rows, inner = prod(shape[:dim]), prod(shape[dim + 1 :]) * first.element_size()
    place, step = pointer(out), shape[dim] * inner
    for t in tensors:
        width = t.shape[dim] * inner
        native().copy_rows(pointer(t), place, rows, width, width, step)
        place += width
    return out
