"""Coverage: calls and exclusive time of every operator and kernel, by dtype, route and reason.

The C++ runtime counts. View and metadata operators compute nothing and are not counted; of a composite only
the calls are, its time is that of the operators in it.
"""

from __future__ import annotations

import atexit
import importlib.metadata
import json
import os
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from mindspeed_ms import _runtime
from mindspeed_ms.config import settings

_since = time.perf_counter()


def counted(
    kernel: str, tensor: torch.Tensor, route: str = "csrc", why: int = 0
) -> AbstractContextManager[Any]:
    """Counts its body, for npu tensors, as one call of a fused kernel, or of ``aten::name``, on `route`.

    `why` is the number of a reason, as :func:`.choice.choose` gives it; 0 where nothing spoke against it.
    """
    if tensor.device.type != "npu":
        return nullcontext()
    return _runtime.CountedCall(kernel, tensor.dtype, route, why)


def snapshot() -> list[dict[str, Any]]:
    """Rows ``{op, dtype, route, why, calls, seconds}`` counted since the last :func:`reset`, most time first.

    `why` says what spoke against a better route; it is empty where nothing did.
    """
    names = ("op", "dtype", "route", "why", "calls", "seconds")
    rows = [dict(zip(names, row, strict=True)) for row in _runtime.coverage_rows()]
    return sorted(rows, key=lambda row: -row["seconds"])


def reset() -> None:
    """Starts counting from zero."""
    global _since
    _runtime.reset_coverage()
    _runtime.reset_bus_counters()
    _since = time.perf_counter()


def report() -> dict[str, Any]:
    """Rows, what crossed between host and device, wall time since the last reset in seconds, versions.

    ``mindspeed-ms coverage`` reads it.
    """
    names = ("mindspeed-ms", "torch", "mindspore", "megatron-core", "numpy")
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    wall = time.perf_counter() - _since
    return {"rows": snapshot(), "bus": _runtime.bus_counters(), "wall_seconds": wall, "versions": versions}


def write(path: str | os.PathLike) -> None:
    """Writes :func:`report` as JSON."""
    Path(path).write_text(json.dumps(report(), indent=1) + "\n")


def write_at_exit() -> None:
    """If MINDSPEED_MS_COVERAGE names a file, write the counters there when the process ends.

    Rank 0 writes the file itself, rank N writes ``<stem>.rank<N><suffix>`` beside it. Processes that a rank
    starts (DataLoader workers, checkpoint writers) inherit the variable but do not write; torchrun, which has
    the bridge on with MINDSPEED_MS_AUTOLOAD and counts nothing, leaves rank 0's report alone.
    """
    path = settings.COVERAGE.value
    if path is None:
        return
    claim = os.environ.get("RANK", "none")
    if settings.COVERAGE_CLAIMED.value == claim:
        return
    settings.COVERAGE_CLAIMED.hand_on(claim)
    rank = 0 if claim == "none" else int(claim)
    if rank:
        path = path.with_name(f"{path.stem}.rank{rank}{path.suffix}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise OSError(
            f"{settings.COVERAGE.name}={path} cannot be written; name a file in a folder that can be"
        )
    started = time.time()

    def write_or_leave() -> None:
        written_since = path.exists() and path.stat().st_mtime >= started
        if snapshot() or not written_since:
            write(path)

    atexit.register(write_or_leave)
