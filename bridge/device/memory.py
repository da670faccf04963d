"""Memory statistics of device npu, counted by the allocator (csrc/runtime/block_cache.h).

Allocated are the bytes of live storages; reserved are these and the blocks that the process keeps for later
allocations. Kept blocks belong to no device: each device's statistics include them.
"""

from __future__ import annotations

import collections
import os
from typing import Any

from mindspeed_ms import _runtime
from mindspeed_ms.device.streams import device_index


def memory_allocated(device: Any = None) -> int:
    """Bytes held by npu tensors now."""
    return _runtime.memory_stats(device_index(device))["allocated"]


def max_memory_allocated(device: Any = None) -> int:
    """Highest :func:`memory_allocated` since the start or the last reset."""
    return _runtime.memory_stats(device_index(device))["peak"]


def memory_reserved(device: Any = None) -> int:
    """:func:`memory_allocated` and the bytes kept for later allocations."""
    return _runtime.memory_stats(device_index(device))["reserved"]


def max_memory_reserved(device: Any = None) -> int:
    """Highest :func:`memory_reserved` since the start or the last reset."""
    return _runtime.memory_stats(device_index(device))["reserved_peak"]


memory_cached = memory_reserved
max_memory_cached = max_memory_reserved


def reset_peak_memory_stats(device: Any = None) -> None:
    _runtime.reset_peak_memory(device_index(device))


reset_max_memory_allocated = reset_max_memory_cached = reset_peak_memory_stats


def reset_accumulated_memory_stats(device: Any = None) -> None:
    """Counts accumulate for the life of the process; kept for callers of the CUDA interface."""


def memory_stats(device: Any = None) -> dict[str, int]:
    """The keys of ``torch.cuda.memory_stats`` that have a meaning here; others read 0."""
    s = _runtime.memory_stats(device_index(device))
    stats = collections.defaultdict(int)
    for kind in ("allocated_bytes", "active_bytes", "requested_bytes"):
        stats[f"{kind}.all.current"] = s["allocated"]
        stats[f"{kind}.all.peak"] = s["peak"]
    stats["reserved_bytes.all.current"] = s["reserved"]
    stats["reserved_bytes.all.peak"] = s["reserved_peak"]
    stats["segment.all.allocated"] = s["mapped"]
    stats["allocation.all.current"] = s["allocations"] - s["frees"]
    stats["allocation.all.allocated"] = s["allocations"]
    stats["allocation.all.freed"] = s["frees"]
    return stats


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """(free, total) bytes; on the CPU target those of the host."""
    device_index(device)
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page


def memory_summary(device: Any = None, abbreviated: bool = False) -> str:
    s = _runtime.memory_stats(device_index(device))
    return (
        f"npu:{device_index(device)} allocated {s['allocated'] / 2**20:.1f} MiB, "
        f"peak {s['peak'] / 2**20:.1f} MiB, reserved {s['reserved'] / 2**20:.1f} MiB, "
        f"{s['allocations'] - s['frees']} live storages"
    )


def memory_snapshot(*_: Any, **__: Any) -> list:
    """Empty: blocks are mapped one by one, there are no segments to describe."""
    return []


def empty_cache() -> None:
    """Gives the memory that is kept for later allocations back to the system."""
    _runtime.empty_cache()


def ipc_collect() -> None:
    """No memory is shared between processes by the device."""


def set_per_process_memory_fraction(fraction: float, device: Any = None) -> None:
    """Host memory is not partitioned; the value is checked as CUDA checks it."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1")
