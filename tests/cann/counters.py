"""The simulator's counters, read in the process that runs on it."""

from __future__ import annotations

import ctypes
import json
from typing import Any


def _library() -> ctypes.CDLL:
    return ctypes.CDLL("libascendcl.so")


def read() -> dict[str, Any]:
    """Counts since the start or the last :func:`reset`.

    ``kernels`` (all launches), ``aclop_kernels`` (those that a chip would compile online),
    ``executors`` (first phases of aclnn), ``h2d``,
    ``d2h``, ``d2d`` (copies) and ``h2d_bytes`` ..., ``stream_syncs``, ``device_syncs``, ``event_syncs``,
    ``collectives``, ``comms`` (HCCL communicators made), ``memory_used``, ``memory_peak`` (bytes),
    ``launches`` (by operator).
    """
    counters = _library().cannsim_counters
    counters.restype = ctypes.c_size_t
    counters.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    size = counters(None, 0) + 4096  # other threads count on
    text = ctypes.create_string_buffer(size)
    counters(text, size)
    return json.loads(text.value)


def reset() -> None:
    """Sets every counter to zero; ``memory_used`` stays, ``memory_peak`` starts from it."""
    _library().cannsim_reset_counters()
