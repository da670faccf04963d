"""The functions of ``torch.cuda``: those of device npu answer under their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mindspeed_ms.device import memory, npu, random, streams
from mindspeed_ms.patches.registry import Patch, add, replace

DEVICE = (
    *("is_available", "init", "is_initialized", "_is_in_bad_fork", "device_count", "current_device"),
    *("set_device", "device", "device_of", "synchronize", "get_device_name", "get_device_capability"),
    *("get_device_properties", "is_bf16_supported", "is_current_stream_capturing"),
    *("utilization", "memory_usage", "temperature", "power_draw", "clock_rate"),
)
STREAMS = ("Stream", "Event", "StreamContext", "current_stream", "default_stream", "set_stream", "stream")
RANDOM = (
    *("default_generators", "get_rng_state", "get_rng_state_all", "initial_seed", "manual_seed"),
    *("manual_seed_all", "seed", "seed_all", "set_rng_state", "set_rng_state_all"),
)
MEMORY = (
    *("empty_cache", "ipc_collect", "max_memory_allocated", "max_memory_cached", "max_memory_reserved"),
    *("mem_get_info", "memory_allocated", "memory_cached", "memory_reserved", "memory_snapshot"),
    *("memory_stats", "memory_stats_as_nested_dict", "memory_summary", "reset_accumulated_memory_stats"),
    *(
        "reset_max_memory_allocated",
        "reset_max_memory_cached",
        "reset_peak_memory_stats",
        "set_per_process_memory_fraction",
    ),
)
ANSWERS = (
    (npu, DEVICE, "the device that a CUDA script asks about is npu"),
    (streams, STREAMS, "streams and events of a CUDA script are those of npu"),
    (random, RANDOM, "the random state of a CUDA script is that of npu"),
    (memory, MEMORY, "memory of a CUDA script is counted by the allocator of npu"),
)
for _source, _names, _reason in ANSWERS:
    for _name in _names:
        add(Patch(f"torch.cuda:{_name}", getattr(_source, _name), _reason))
for _name in ("_record_memory_history", "_snapshot"):
    add(Patch(f"torch.cuda.memory:{_name}", getattr(memory, _name), "torch's own asks the CUDA allocator"))

STARTS = "torch's own starts the CUDA driver, which is not there"
NO_LIBRARY = "there is no CUDA runtime library to call"


@replace("torch.cuda:_lazy_init", reason=STARTS)
def _lazy_init() -> None:
    npu.init()


@replace("torch.cuda:_lazy_call", reason=STARTS)
def _lazy_call(callable: Callable[[], Any], **_: Any) -> None:
    callable()


@replace("torch.cuda._utils:_get_device_index", reason="torch's own refuses a device of type npu")
def _get_device_index(device: Any, optional: bool = False, allow_cpu: bool = False) -> int:
    return streams.device_index(device)


@replace(
    "torch._utils:_get_available_device_type",
    reason="torch asks it which tensors to copy to the CPU for a checkpoint; its own says cuda",
)
def _get_available_device_type() -> str:
    return "npu"


@replace("torch.cuda.graphs:CUDAGraph", reason="torch's own says nothing of what to do without CUDA graphs")
class CUDAGraph:
    """A type, so that libraries can name it in annotations; NotImplementedError when one is made."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("CUDA graphs do not exist on device npu; run without --cuda-graph-impl.")


class CudaRuntime:
    """The calls that profiling scripts make of the CUDA runtime library."""

    @staticmethod
    def cudaProfilerStart() -> int:
        """0, success."""
        return 0

    @staticmethod
    def cudaProfilerStop() -> int:
        """0, success."""
        return 0


@replace("torch.cuda:cudart", reason=NO_LIBRARY)
def cudart() -> type[CudaRuntime]:
    """What profiling scripts call."""
    return CudaRuntime


@replace("torch.cuda:check_error", reason=NO_LIBRARY)
def check_error(res: int) -> None:
    """Nothing: of the calls above none can fail."""


@replace("torch.cuda.nccl:version", reason="torch's logger asks for it while it reports a failed collective")
def nccl_version() -> tuple[int, int, int]:
    """No NCCL."""
    return (0, 0, 0)
