"""Concatenation, rotation, triangles, and tensors of one value."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from mindspeed_ms.kernels import moving
from mindspeed_ms.ops.dtypes import cast, torch_dtype
from mindspeed_ms.ops.names import ag, mint, ms, ops
from mindspeed_ms.ops.registry import ALL, ASCEND_ALL, NATIVE, NUMBERS, Kernel, row

Tensor = torch.Tensor

MOVED = (*NATIVE, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
"""What csrc moves: anything whose bytes it may copy."""

_full_like, _zeros_like = ops.full_like, ag.ZerosLike()


def cat(tensors: Sequence[ms.Tensor], dim: int) -> Any:
    common = reduce(torch.promote_types, map(torch_dtype, tensors))
    tensors = [cast(t, common) for t in tensors]
    first = tensors[0].shape
    if not first:
        return NotImplemented
    if len(tensors) == 1:
        return tensors[0]  # the C++ kernel copies what shares memory with an input
    dim %= len(first)
    for t in tensors[1:]:
        if len(t.shape) != len(first) or any(t.shape[i] != first[i] for i in range(len(first)) if i != dim):
            return NotImplemented  # torch's own error
    return mint.cat(tuple(tensors), dim)


def csrc_cat(tensors: Sequence[Tensor], dim: int) -> Any:
    return moving.cat(tensors, dim) if moving.joins(tensors, dim) else NotImplemented


row(
    "aten::cat",
    lambda s: torch.cat([s.x, s.y]),
    cpu=Kernel(cat, (*ALL, torch.bfloat16)),
    csrc=Kernel(csrc_cat, MOVED),
    mixed=True,
    joins=True,
)


def ascend_roll(x: ms.Tensor, shifts: Sequence[int], dims: Sequence[int]) -> Any:
    return mint.roll(x, tuple(shifts), tuple(dims) if dims else None) if x.shape else NotImplemented


row(
    "aten::roll",
    lambda s: s.x.roll(1, 0),
    ascend=Kernel(ascend_roll, ASCEND_ALL),  # on the CPU mint.roll ends the process
)


def ascend_flip(x: ms.Tensor, dims: Sequence[int]) -> Any:
    return mint.flip(x, tuple(dims)) if x.shape and dims else NotImplemented


row("aten::flip", lambda s: s.x.flip(0, 1), ascend=Kernel(ascend_flip, ASCEND_ALL))


def tril(x: ms.Tensor, diagonal: int) -> Any:
    return ops.tril(x, diagonal) if len(x.shape) >= 2 else NotImplemented


def ascend_tril(x: ms.Tensor, diagonal: int) -> Any:
    return mint.tril(x, diagonal) if len(x.shape) >= 2 else NotImplemented


row("aten::tril", lambda s: s.x.tril(), cpu=Kernel(tril, NUMBERS), ascend=Kernel(ascend_tril, ASCEND_ALL))


def triu(x: ms.Tensor, diagonal: int) -> Any:
    return mint.triu(x, diagonal) if len(x.shape) >= 2 else NotImplemented


row("aten::triu", lambda s: s.x.triu(), cpu=Kernel(triu, NUMBERS), ascend=Kernel(triu, ASCEND_ALL))


def zero(x: ms.Tensor) -> ms.Tensor:
    return _zeros_like(x)


row(
    "aten::zero",
    lambda s: torch.ops.aten.zero(s.x),
    cpu=Kernel(zero, ALL),
    ascend=Kernel(mint.zeros_like, ASCEND_ALL),
    csrc=Kernel(moving.zero, MOVED, in_place=moving.zero_),
)


def fill(x: ms.Tensor, value: float) -> ms.Tensor:
    return _full_like(x, value)


row(
    "aten::fill.Scalar",
    lambda s: torch.ops.aten.fill(s.x, 1),
    cpu=Kernel(fill, ALL),
    ascend=Kernel(mint.full_like, ASCEND_ALL),
)
