"""Dtypes of ``ms.Tensor`` as torch's, and casts."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from mindspeed_ms.device.mindspore import DTYPES, dtype_of
from mindspeed_ms.ops.names import ag, ms

_cast = ag.Cast()


@cache
def _table() -> dict[Any, torch.dtype]:
    return {getattr(ms, name): dtype for name, dtype in DTYPES.items()}


def torch_dtype(x: ms.Tensor) -> torch.dtype:
    """torch's counterpart of the dtype of `x`."""
    return _table()[x.dtype]


def is_integral(x: ms.Tensor) -> bool:
    """True for integers and bool."""
    dtype = torch_dtype(x)
    return not (dtype.is_floating_point or dtype.is_complex)


def cast(x: ms.Tensor, dtype: torch.dtype | None) -> ms.Tensor:
    """`x` in a torch dtype; `x` itself for None or its own."""
    if dtype is None or torch_dtype(x) is dtype:
        return x
    return _cast(x, dtype_of(dtype))
