"""``torch.npu``: what torch and scripts ask of a device module, with the names of ``torch.cuda``."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Any

import torch
from mindspeed_ms import _runtime
from mindspeed_ms.device import memory, random, streams
from mindspeed_ms.device.memory import *  # noqa: F403 - torch.npu offers them flat, as torch.cuda does
from mindspeed_ms.device.memory import mem_get_info
from mindspeed_ms.device.mindspore import module
from mindspeed_ms.device.random import (  # noqa: F401
    default_generators,
    get_rng_state,
    get_rng_state_all,
    initial_seed,
    manual_seed,
    manual_seed_all,
    seed,
    seed_all,
    set_rng_state,
    set_rng_state_all,
)
from mindspeed_ms.device.streams import (  # noqa: F401
    Event,
    Stream,
    StreamContext,
    current_stream,
    default_stream,
    device_index,
    set_stream,
    stream,
)

__all__ = ["memory", "random", "streams"]

COMPUTE_CAPABILITY = (8, 0)
"""What ``get_device_capability`` answers: scripts read it as "bfloat16 yes, fp8 no"."""


@dataclass(frozen=True)
class DeviceProperties:
    """The fields of ``torch.cuda.get_device_properties`` that scripts read. `total_memory` in bytes."""

    name: str
    total_memory: int
    major: int = COMPUTE_CAPABILITY[0]
    minor: int = COMPUTE_CAPABILITY[1]
    multi_processor_count: int = 1
    warp_size: int = 32
    is_integrated: bool = True
    is_multi_gpu_board: bool = False
    uuid: str = ""

    @property
    def gcnArchName(self) -> str:
        """What torch.compile keys its cache of CPU code by where torch.version.cuda is None."""
        return self.name


def is_available() -> bool:
    return True


def init() -> None:
    """Starts the device now instead of at its first tensor."""
    _runtime.ensure_initialized()


def is_initialized() -> bool:
    return _runtime.is_initialized()


def _is_in_bad_fork() -> bool:
    return _runtime.in_bad_fork()


def count_ranks() -> None:
    """On the CPU target devices are the ranks of this host. A spawned process has this package before it is
    told their number, so the number counts that stands when the device is first used.
    """
    if not _runtime.opaque_memory() and not _runtime.is_initialized():
        _runtime.set_device_count(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def device_count() -> int:
    count_ranks()
    return _runtime.device_count()


def current_device() -> int:
    return _runtime.current_device()


def set_device(device: Any) -> None:
    index = device_index(device)
    count_ranks()
    _runtime.set_device(index)


class device:
    """``with torch.npu.device(i)``: makes `i` current inside; None or a negative index changes nothing."""

    def __init__(self, device: Any) -> None:
        self.idx = device if isinstance(device, int) else (-1 if device is None else device_index(device))
        self.prev_idx = -1

    def __enter__(self) -> None:
        if self.idx >= 0:
            self.prev_idx = _runtime.exchange_device(self.idx)

    def __exit__(self, *_: Any) -> None:
        if self.idx >= 0:
            _runtime.exchange_device(self.prev_idx)


class device_of(device):
    """Makes the device of an npu tensor current inside."""

    def __init__(self, obj: torch.Tensor) -> None:
        super().__init__(obj.get_device() if obj.device.type == "npu" else None)


def synchronize(device: Any = None) -> None:
    """Waits for the device. On the CPU target operators have completed when they return."""
    device_index(device)
    if _runtime.opaque_memory():
        _runtime.synchronize_device()


def get_device_name(device: Any = None) -> str:
    return get_device_properties(device).name


def get_device_capability(device: Any = None) -> tuple[int, int]:
    device_index(device)
    return COMPUTE_CAPABILITY


def get_device_properties(device: Any = None) -> DeviceProperties:
    index = device_index(device)
    if _runtime.opaque_memory():
        known = module().hal.get_device_properties(index)
        return DeviceProperties(name=known.name, total_memory=mem_get_info(index)[1], is_integrated=False)
    processor = platform.processor() or platform.machine()
    return DeviceProperties(name=f"MindSpore CPU ({processor})", total_memory=mem_get_info()[1])


def is_bf16_supported(including_emulation: bool = True) -> bool:
    return True


def is_current_stream_capturing() -> bool:
    """No graph capture on this device."""
    return False


def _not_measured(device: Any = None) -> int:
    """A reading that the CPU target does not have, reported as 0."""
    return 0


# Megatron's straggler detector asks for them all.
utilization = memory_usage = temperature = power_draw = clock_rate = _not_measured


def get_amp_supported_dtype() -> list[torch.dtype]:
    """Dtypes of torch.autocast(device_type="npu")."""
    return [torch.bfloat16, torch.float16, torch.float32]


def __getattr__(name: str) -> Any:
    # torch.utils.checkpoint saves and restores random states only where this says that the device is in use.
    if name == "_initialized":
        return _runtime.is_initialized()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
