"""Memory statistics of device npu.

On the CPU target the allocator counts (csrc/runtime/block_cache.h): allocated are the bytes of live storages;
reserved are these and the blocks that the process keeps for later allocations. Kept blocks belong to no
device: each device's statistics include them. On Ascend the memory is MindSpore's, and so are the numbers.
"""

from __future__ import annotations

import collections
import os
import warnings
from typing import Any

from mindspeed_ms import _runtime
from mindspeed_ms.device import mindspore
from mindspeed_ms.device.streams import device_index


def _stats(device: Any) -> dict[str, int]:
    """What the runtime counts, on Ascend with MindSpore's bytes once it has started."""
    counted = _runtime.memory_stats(device_index(device))
    if _runtime.opaque_memory() and mindspore.started():
        from mindspore import runtime

        counted |= {
            "allocated": runtime.memory_allocated(),
            "peak": runtime.max_memory_allocated(),
            "reserved": runtime.memory_reserved(),
            "reserved_peak": runtime.max_memory_reserved(),
        }
    return counted


def memory_allocated(device: Any = None) -> int:
    """Bytes held by npu tensors now."""
    return _stats(device)["allocated"]


def max_memory_allocated(device: Any = None) -> int:
    """Highest :func:`memory_allocated` since the start or the last reset."""
    return _stats(device)["peak"]


def memory_reserved(device: Any = None) -> int:
    """:func:`memory_allocated` and the bytes kept for later allocations."""
    return _stats(device)["reserved"]


def max_memory_reserved(device: Any = None) -> int:
    """Highest :func:`memory_reserved` since the start or the last reset."""
    return _stats(device)["reserved_peak"]


memory_cached = memory_reserved
max_memory_cached = max_memory_reserved


def reset_peak_memory_stats(device: Any = None) -> None:
    _runtime.reset_peak_memory(device_index(device))
    if _runtime.opaque_memory() and mindspore.started():
        from mindspore import runtime

        runtime.reset_peak_memory_stats()


reset_max_memory_allocated = reset_max_memory_cached = reset_peak_memory_stats


def reset_accumulated_memory_stats(device: Any = None) -> None:
    """Counts accumulate for the life of the process; kept for callers of the CUDA interface."""


STATISTICS = (
    *("allocation", "segment", "active", "inactive_split", "allocated_bytes", "reserved_bytes"),
    *("active_bytes", "inactive_split_bytes", "requested_bytes"),
)
POOLS = ("all", "large_pool", "small_pool")
METRICS = ("current", "peak", "allocated", "freed")
EVENTS = ("num_alloc_retries", "num_ooms", "num_sync_all_streams", "num_device_alloc", "num_device_free")
"""With ``STATISTICS`` for each of ``POOLS`` and ``METRICS``: the keys that CUDA has."""


def memory_stats_as_nested_dict(device: Any = None) -> dict[str, Any]:
    """The statistics of ``torch.cuda.memory_stats_as_nested_dict``; what has no meaning here is 0."""
    s = _stats(device)
    stats: dict[str, Any] = {name: {pool: dict.fromkeys(METRICS, 0) for pool in POOLS} for name in STATISTICS}
    for name in ("oversize_allocations", "oversize_segments"):
        stats[name] = dict.fromkeys(METRICS, 0)
    stats |= dict.fromkeys((*EVENTS, "max_split_size"), 0)
    for name in ("allocated_bytes", "active_bytes", "requested_bytes"):
        stats[name]["all"] |= {"current": s["allocated"], "peak": s["peak"]}
    stats["reserved_bytes"]["all"] |= {"current": s["reserved"], "peak": s["reserved_peak"]}
    stats["segment"]["all"]["allocated"] = s["mapped"]
    for name in ("allocation", "active"):
        made, gone = s["allocations"], s["frees"]
        stats[name]["all"] |= {"current": made - gone, "allocated": made, "freed": gone}
    return stats


def memory_stats(device: Any = None) -> collections.OrderedDict[str, int]:
    """The keys of ``torch.cuda.memory_stats``, sorted as there; what has no meaning here is 0."""
    flat = {}

    def add(prefix: str, value: Any) -> None:
        if not isinstance(value, dict):
            flat[prefix] = value
            return
        for name, inner in value.items():
            add(f"{prefix}.{name}" if prefix else name, inner)

    add("", memory_stats_as_nested_dict(device))
    return collections.OrderedDict(sorted(flat.items()))


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """(free, total) bytes; on the CPU target those of the host."""
    index = device_index(device)
    if _runtime.opaque_memory():
        known = mindspore.module().hal.get_device_properties(index)
        return known.free_memory * 2**20, known.total_memory * 2**20
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page


def memory_summary(device: Any = None, abbreviated: bool = False) -> str:
    s = _stats(device)
    return (
        f"npu:{device_index(device)} allocated {s['allocated'] / 2**20:.1f} MiB, "
        f"peak {s['peak'] / 2**20:.1f} MiB, reserved {s['reserved'] / 2**20:.1f} MiB, "
        f"{s['allocations'] - s['frees']} live storages"
    )


def memory_snapshot(*_: Any, **__: Any) -> list:
    """Empty: blocks are mapped one by one, there are no segments to describe."""
    return []


def _record_memory_history(enabled: str | bool | None = "all", *_: Any, **__: Any) -> None:
    """Says in a warning that nothing is recorded; None, which ends a recording, says nothing."""
    if enabled:
        warnings.warn(
            "device npu keeps no history of allocations: a snapshot holds the totals of each device, and no "
            "stack traces",
            UserWarning,
            stacklevel=2,
        )


def _snapshot(device: Any = None, augment_with_fx_traces: bool = False) -> dict[str, Any]:
    """What ``torch.cuda.memory._snapshot`` gives, with one segment for all memory of a device."""
    segments = []
    for index in range(_runtime.device_count()):
        s = _stats(index)
        block = {"size": s["allocated"], "requested_size": s["allocated"], "address": 0, "frames": []}
        segments.append(
            {
                "device": index,
                "address": 0,
                "total_size": s["reserved"],
                "allocated_size": s["allocated"],
                "active_size": s["allocated"],
                "requested_size": s["allocated"],
                "stream": 0,
                "segment_type": "large",
                "segment_pool_id": (0, 0),
                "is_expandable": False,
                "frames": [],
                "blocks": [{**block, "state": "active_allocated"}],
            }
        )
    traces: list[list[Any]] = [[] for _ in segments]
    return {"segments": segments, "device_traces": traces, "allocator_settings": {}}


def empty_cache() -> None:
    """Gives the memory that is kept for later allocations back to the system."""
    if not _runtime.opaque_memory():
        _runtime.empty_cache()
    elif mindspore.started():
        from mindspore import runtime

        runtime.empty_cache()


def ipc_collect() -> None:
    """No memory is shared between processes by the device."""


def set_per_process_memory_fraction(fraction: float, device: Any = None) -> None:
    """Host memory is not partitioned; the value is checked as CUDA checks it."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1")
