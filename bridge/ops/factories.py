"""Sequences made where the memory is the device's. On the CPU target torch's own kernels write them."""

from __future__ import annotations

import math

import torch
from mindspeed_ms.device import from_mindspore
from mindspeed_ms.ops.dtypes import dtype_of
from mindspeed_ms.ops.names import mint
from mindspeed_ms.routes import counted

Number = int | float
Tensor = torch.Tensor

_library: torch.library.Library | None = None


def register() -> None:
    """Makes these functions the npu kernels of their aten operators. Once per process."""
    global _library
    _library = torch.library.Library("aten", "IMPL")
    _library.impl("arange.start_out", arange, "PrivateUse1")


def arange(start: Number, end: Number, step: Number = 1, *, out: Tensor) -> Tensor:
    """aten::arange.start_out. RuntimeError where `step` does not lead from `start` to `end`."""
    if out.dtype is torch.int64:  # torch has all three in the dtype first, of int64 alone
        start, end, step = int(start), int(end), int(step)
    if step == 0 or (end - start) / step < 0:
        raise RuntimeError(f"arange: step {step} does not lead from {start} to {end}")
    length = math.ceil((end - start) / step)
    out.resize_(length)
    if not out.dtype.is_floating_point:
        start, step = int(start), int(step)
    if out.numel():
        with counted("aten::arange.start_out", out, "mindspore"):
            if isinstance(start, int) and isinstance(step, int):
                found = mint.arange(start, start + length * step, step, dtype=dtype_of(out.dtype))
            else:  # MindSpore and CANN do not agree on the length where numbers are no integers
                whole = mint.arange(0, length, 1, dtype=dtype_of(torch.float32))
                found = mint.add(mint.mul(whole, step), start)
        out.copy_(from_mindspore(found))
    return out
