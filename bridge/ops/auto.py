"""Route auto: for each operator and dtype the fastest correct route below and above a size.

The table is ``auto_routes.json`` beside this file, measured by :mod:`.calibrate`:
``{"routes": {operator: {dtype: [below, above, numel]}}}``. Operators and dtypes that it does not name run on
the host. MINDSPEED_MS_AUTO_ROUTES names another file, for instance one measured on the machine at hand.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from mindspeed_ms.ops.fences import precise
from mindspeed_ms.ops.registry import Lowering

VARIABLE = "MINDSPEED_MS_AUTO_ROUTES"
DEFAULT = Path(__file__).with_name("auto_routes.json")


def path() -> Path:
    return Path(os.environ.get(VARIABLE) or DEFAULT)


def apply(table: dict[str, Lowering]) -> None:
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
            f"{file} holds no table of routes ({error!r}); remove {VARIABLE} or remake the file."
        ) from None
    for name, by_dtype in routes.items():
        entry = table.get(name)
        if entry is None:
            raise ValueError(
                f"{file} names {name}, which has no lowering; remake it with mindspeed_ms.ops.calibrate."
            )
        for dtype_name, (below, above, numel) in by_dtype.items():
            dtype = getattr(torch, dtype_name)
            for route in (below, above):
                if route == "mindspore" and not precise(name, dtype):
                    raise ValueError(
                        f"{file} routes {name} ({dtype_name}) to a MindSpore kernel that is fenced."
                    )
            entry.handle.set_auto(dtype, below, above, numel)
