"""The bridge in processes that :mod:`multiprocessing` spawns, whatever their main script imports.

A forked process has what its parent has. One that is spawned, or forked from multiprocessing's server, starts
as a new interpreter: data loaders, checkpoint workers, ``torch.multiprocessing.spawn``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from multiprocessing import spawn
from typing import Any

_CODE = """
import sys
import wrapt
sys.path[:] = {path!r}
for name in ("torch", "mindspeed_ms"):
    wrapt.register_post_import_hook(lambda module: __import__("mindspeed_ms.patch"), name)
"""


class _Switch:
    """What runs ``_CODE`` in the process that unpickles it.

    That happens before the process has the parent's path and before it imports anything of the script: torch,
    whenever it comes, brings the bridge, and a process without torch stays without both. So does a part of
    this package that comes first: the bridge could not be imported halfway through that.
    """

    def __init__(self, path: list[str]) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str, dict[str, Any]]]:
        return exec, (_CODE.format(path=self.path), {})


def switch_on() -> None:
    """Has every process that this one spawns import ``mindspeed_ms.patch`` with torch. Idempotent."""
    original = spawn.get_preparation_data
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def get_preparation_data(name: str) -> dict[str, Any]:
        data: dict[str, Any] = original(name)
        return {**data, "mindspeed_ms": _Switch(data["sys_path"])}

    spawn.get_preparation_data = get_preparation_data
