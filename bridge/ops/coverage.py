"""Coverage: calls and exclusive time of every operator, by dtype and route, counted by the C++ runtime.

View and metadata operators compute nothing and are not counted.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from mindspeed_ms import _runtime

_since = time.perf_counter()


def snapshot() -> list[dict[str, Any]]:
    """Rows ``{op, dtype, route, calls, seconds}`` counted since the last :func:`reset`, most time first."""
    rows = [
        {"op": op, "dtype": dtype, "route": route, "calls": calls, "seconds": seconds}
        for op, dtype, route, calls, seconds in _runtime.coverage_rows()
    ]
    return sorted(rows, key=lambda row: -row["seconds"])


def reset() -> None:
    """Starts counting from zero."""
    global _since
    _runtime.reset_coverage()
    _since = time.perf_counter()


def report() -> dict[str, Any]:
    """Rows, wall time since the last reset in seconds, and versions: what ``mindspeed-ms coverage`` reads."""
    import importlib.metadata

    names = ("mindspeed-ms", "torch", "mindspore", "megatron-core", "numpy")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {"rows": snapshot(), "wall_seconds": time.perf_counter() - _since, "versions": versions}


def write(path: str | os.PathLike) -> None:
    """Writes :func:`report` as JSON."""
    Path(path).write_text(json.dumps(report(), indent=1) + "\n")


counted = _runtime.Timed
"""``with counted("rms_norm", dtype):`` counts its body as one call on route csrc."""
