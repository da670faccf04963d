"""The flight record: the last collectives of every group of this rank, written when one of them fails.

One JSON file per rank: ``$MINDSPEED_MS_FLIGHT_DIR`` (default: ``mindspeed_ms_flight`` in the temporary
directory) ``/<run>-rank<r>.json``, where run is torchelastic's run id or this process's parent.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from mindspeed_ms.comm import engine
from mindspeed_ms.comm.errors import GroupClosedError
from mindspeed_ms.config import settings


class Recorded(Protocol):
    """What the record asks of a process group, which names itself here when it is made."""

    global_ranks: Sequence[int]

    @property
    def title(self) -> str: ...
    def rank(self) -> int: ...
    def getGroupName(self) -> str: ...
    def getGroupDesc(self) -> str: ...
    def history(self) -> list[dict[str, Any]]: ...
    def shutdown(self, reason: str = ...) -> None: ...


_groups: weakref.WeakSet[Recorded] = weakref.WeakSet()
_lock = threading.Lock()
_hooked = False
_last_words = "its process ended"
_failing = False  # a collective failed, or an exception that nobody caught ends this rank


def directory() -> Path:
    """Where flight records go."""
    return settings.FLIGHT_DIR.value or Path(tempfile.gettempdir()) / "mindspeed_ms_flight"


def record_path(rank: int | str) -> Path:
    """File of this run's record of global rank ``rank``."""
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if run == "none":
        run = f"run{os.getppid()}"
    return directory() / f"{run}-rank{rank}.json"


def register(group: Recorded) -> None:
    """Makes the group known to the record and to the clean-up at exit."""
    global _hooked
    with _lock:
        _groups.add(group)
        if not _hooked:
            _hooked = True
            atexit.register(_leave)
            sys.excepthook = _remember(sys.excepthook)


def unregister(group: Recorded) -> None:
    with _lock:
        _groups.discard(group)


def closed_error(group: Recorded, reason: str) -> GroupClosedError:
    """The error for using ``group`` after it was closed."""
    return GroupClosedError(f"group '{group.title}' (ranks {list(group.global_ranks)}) is closed: {reason}")


def dump(failed: Recorded, error: Exception) -> Path:
    """Writes the record of all groups and adds its path to ``error``'s notes."""
    global _failing
    _failing = True
    path = record_path(failed.global_ranks[failed.rank()])
    with _lock:
        groups = list(_groups)
    payload: dict[str, Any] = {
        "error": f"{type(error).__name__}: {error}",
        "group": failed.title,
        "pid": os.getpid(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "clock_s": time.monotonic(),
        "groups": [
            {
                "name": g.getGroupName(),
                "description": g.getGroupDesc(),
                "ranks": list(g.global_ranks),
                "rank": g.global_ranks[g.rank()],
                "collectives": history,
            }
            for g in groups
            if (history := g.history())
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(payload, indent=1))
    partial.replace(path)
    if hasattr(error, "add_note"):
        error.add_note(f"flight record of this rank: {path}")
    return path


def _remember(hook: Any) -> Any:
    """An uncaught exception becomes the reason that the other ranks are told, at once: teardown may take
    long."""

    def excepthook(kind: type[BaseException], value: BaseException, traceback: Any) -> None:
        global _last_words, _failing
        _failing = True
        _last_words = f"{kind.__name__}: {str(value)[:400]}"
        _leave()
        hook(kind, value, traceback)

    return excepthook


def _leave() -> None:
    with _lock:
        groups = list(_groups)
    for group in groups:
        group.shutdown(_last_words)
    if not _failing:
        engine.linger()
