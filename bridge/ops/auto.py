"""Route auto: for each operator and dtype the fastest correct route below and above a size.

A table is a file ``{"routes": {operator: {dtype: [below, above, numel]}}, "machine": ...}`` written by
:mod:`.calibrate`. Operators and dtypes that it does not name run on the host. Taken is the file that
MINDSPEED_MS_AUTO_ROUTES names, else what ``mindspeed-ms calibrate`` measured on this very machine
with these versions, else ``auto_routes.json`` beside this module.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path

import torch
from mindspeed_ms import __version__
from mindspeed_ms.config import settings
from mindspeed_ms.ops.registry import Row

DEFAULT = Path(__file__).with_name("auto_routes.json")


def machine() -> dict[str, str | int]:
    """What the measured times depend on: a table made elsewhere says nothing here."""
    cpu = Path("/proc/cpuinfo")
    names = [line for line in cpu.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0].partition(":")[2].strip() if names else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "mindspore": version("mindspore"),
        "mindspeed_ms": __version__,
    }


def measured() -> Path:
    """Where ``mindspeed-ms calibrate`` keeps the table of this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mindspeed_ms" / DEFAULT.name


def is_current(file: Path) -> bool:
    """Whether `file` was measured on this machine with these versions."""
    try:
        return json.loads(file.read_text())["machine"] == machine()
    except (OSError, ValueError, KeyError):
        return False


def path() -> Path:
    """The file in force."""
    named = settings.AUTO_ROUTES.value
    if named:
        return named
    return measured() if is_current(measured()) else DEFAULT


def apply(table: dict[str, Row]) -> None:
    """Sets route auto of every registered lowering from the file.

    Raises:
        ValueError: the file is no table of routes, or names a route that the operator does not have or that a
            fence forbids.
    """
    file = path()
    try:
        routes = json.loads(file.read_text())["routes"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{file} holds no table of routes ({error!r}); unset {settings.AUTO_ROUTES.name} or remake it."
        ) from None
    for name, by_dtype in routes.items():
        entry = table.get(name)
        if entry is None:
            raise ValueError(
                f"{file} names {name}, which has no lowering; remake it with `mindspeed-ms calibrate`."
            )
        for dtype_name, (below, above, numel) in by_dtype.items():
            dtype = getattr(torch, dtype_name)
            for route in (below, above):
                kernel = entry.kernels().get(route)
                if kernel and kernel.error(dtype):
                    raise ValueError(
                        f"{file} routes {name} ({dtype_name}) to a {route} kernel that is fenced."
                    )
            entry.handle.set_auto(
                dtype,
                below,
                above,
                numel,
                f"the calibrated table prefers {below} below {numel} elements",
                f"the calibrated table prefers {above}" + (f" from {numel} elements on" if numel else ""),
            )
