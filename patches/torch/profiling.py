"""NVTX ranges and the CUDA profiler's switches, which stay in training scripts."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from mindspeed_ms.patches.registry import replace

RANGES = "nsys sees nothing of this device: NVTX ranges become ranges of torch's profiler"
SWITCH = "there is no CUDA profiler to switch"

_ranges: list[contextlib.AbstractContextManager[Any]] = []


@replace("torch.cuda.nvtx:range_start", reason=RANGES)
@replace("torch.cuda.nvtx:range_push", reason=RANGES)
def range_push(msg: str, *_: Any, **__: Any) -> int:
    """Enter a range; returns its depth."""
    scope = torch.profiler.record_function(msg)
    scope.__enter__()
    _ranges.append(scope)
    return len(_ranges) - 1


@replace("torch.cuda.nvtx:range_pop", reason=RANGES)
def range_pop() -> int:
    """Leave the innermost range; returns its depth, -1 if there is none."""
    if not _ranges:
        return -1
    _ranges.pop().__exit__(None, None, None)
    return len(_ranges)


@replace("torch.cuda.nvtx:range_end", reason=RANGES)
def range_end(range_id: int) -> None:
    """Nothing: torch's profiler has no ranges that overlap."""


@replace("torch.cuda.nvtx:mark", reason=RANGES)
def mark(msg: str) -> None:
    """Nothing."""


@replace("torch.cuda.profiler:stop", reason=SWITCH)
@replace("torch.cuda.profiler:start", reason=SWITCH)
def switch() -> None:
    """Nothing."""


@replace("torch.autograd.profiler:emit_nvtx", reason="torch's own starts nsys' ranges in the CUDA driver")
class EmitNvtx(contextlib.nullcontext):
    """A context that does nothing."""

    def __init__(self, enabled: bool = True, record_shapes: bool = False) -> None:
        super().__init__()
