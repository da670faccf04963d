"""Dtypes of ``ms.Tensor`` as torch's, and casts."""

from __future__ import annotations

import mindspore as ms
import torch
from mindspeed_ms.device.mindspore import DTYPES, dtype_of
from mindspore.ops import auto_generate as ag

TORCH: dict[ms.dtype.TensorType, torch.dtype] = {getattr(ms, name): dtype for name, dtype in DTYPES.items()}
"""MindSpore dtype -> torch dtype."""

_cast = ag.Cast()


def is_integral(x: ms.Tensor) -> bool:
    """True for integers and bool."""
    return not (TORCH[x.dtype].is_floating_point or TORCH[x.dtype].is_complex)


def cast(x: ms.Tensor, dtype: torch.dtype | None) -> ms.Tensor:
    """`x` in a torch dtype; `x` itself for None or its own."""
    if dtype is None or TORCH[x.dtype] is dtype:
        return x
    return _cast(x, dtype_of(dtype))
