"""``torch.cuda`` redirected to device npu.

Tensors asked for on device "cuda" are redirected inside torch's dispatcher (csrc/aten/cuda_redirect.cpp).
What remains for Python is here: the functions of ``torch.cuda``, its types, and the few functions of torch
that take the string "cuda" and do not dispatch.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.cuda.amp
import torch.cuda.memory
import torch.cuda.nccl
import torch.cuda.nvtx
import torch.cuda.random
import torch.cuda.streams
from mindspeed_ms import _runtime
from mindspeed_ms.device import memory, npu, random, streams
from torch.distributed.device_mesh import DeviceMesh

DEVICE_FUNCTIONS = (
    *("is_available", "init", "is_initialized", "_is_in_bad_fork", "device_count", "current_device"),
    *("set_device", "device", "device_of", "synchronize", "get_device_name", "get_device_capability"),
    *("get_device_properties", "is_bf16_supported", "is_current_stream_capturing"),
    *("utilization", "memory_usage", "temperature", "power_draw", "clock_rate"),
)
STREAM_FUNCTIONS = (
    *("Stream", "Event", "StreamContext", "current_stream", "default_stream", "set_stream", "stream"),
)
RANDOM_FUNCTIONS = (
    *("default_generators", "get_rng_state", "get_rng_state_all", "initial_seed", "manual_seed"),
    *("manual_seed_all", "seed", "seed_all", "set_rng_state", "set_rng_state_all"),
)
MEMORY_FUNCTIONS = (
    *("empty_cache", "ipc_collect", "max_memory_allocated", "max_memory_cached", "max_memory_reserved"),
    *(
        "mem_get_info",
        "memory_allocated",
        "memory_cached",
        "memory_reserved",
        "memory_snapshot",
        "memory_stats",
    ),
    *("memory_summary", "reset_accumulated_memory_stats", "reset_max_memory_allocated"),
    *("reset_max_memory_cached", "reset_peak_memory_stats", "set_per_process_memory_fraction"),
)
# torch.cuda name -> the submodules of torch.cuda that scripts also import it from.
SOURCES = {
    npu: (DEVICE_FUNCTIONS, ()),
    streams: (STREAM_FUNCTIONS, (torch.cuda.streams,)),
    random: (RANDOM_FUNCTIONS, (torch.cuda.random,)),
    memory: (MEMORY_FUNCTIONS, (torch.cuda.memory,)),
}

TYPES = {
    "FloatTensor": torch.float32,
    "DoubleTensor": torch.float64,
    "HalfTensor": torch.float16,
    "BFloat16Tensor": torch.bfloat16,
    "ByteTensor": torch.uint8,
    "CharTensor": torch.int8,
    "ShortTensor": torch.int16,
    "IntTensor": torch.int32,
    "LongTensor": torch.int64,
    "BoolTensor": torch.bool,
}
_TYPE_NAMES = {dtype: f"torch.cuda.{name}" for name, dtype in TYPES.items()}

_redirected = False


def redirect() -> None:
    """Makes scripts written for CUDA find device npu under the name cuda. Idempotent."""
    global _redirected
    if _redirected:
        return
    _runtime.register_cuda_redirect()
    _redirect_functions()
    _redirect_types()
    _redirect_tensor()
    _redirect_generator()
    _redirect_autocast()
    _redirect_serialization()
    _redirect_device_mesh()
    _redirected = True


def _redirect_functions() -> None:
    for source, (names, submodules) in SOURCES.items():
        for name in names:
            for module in (torch.cuda, *(m for m in submodules if hasattr(m, name))):
                setattr(module, name, getattr(source, name))
    torch.cuda._lazy_init = npu.init
    torch.cuda._lazy_call = lambda function, **_: function()
    torch.cuda._get_device_index = lambda device, *_, **__: streams.device_index(device)
    torch.cuda._utils._get_device_index = torch.cuda._get_device_index
    torch.cuda.CUDAGraph = torch.cuda.graphs.CUDAGraph = _CudaGraph
    torch.cuda.cudart = _cudart
    # torch asks it which tensors to copy to the CPU for a checkpoint; its own says cuda.
    torch._utils._get_available_device_type = lambda: "npu"
    torch.cuda.check_error = _check_error
    # torch's logger asks for it while it reports a failed collective; there is no NCCL here.
    torch.cuda.nccl.version = lambda: (0, 0, 0)
    torch.cuda.profiler.start = torch.cuda.profiler.stop = lambda: None
    nvtx = torch.cuda.nvtx
    nvtx.range_push = nvtx.range_start = _nvtx_push
    nvtx.range_pop = _nvtx_pop
    nvtx.range_end = lambda _range_id: None
    nvtx.mark = lambda _msg: None
    torch.autograd.profiler.emit_nvtx = _EmitNvtx


class _CudaGraph:
    """A type, so that libraries can name it in annotations; NotImplementedError when one is made."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("CUDA graphs do not exist on device npu; run without --cuda-graph-impl.")


class _CudaRuntime:
    """The calls that profiling scripts make of the CUDA runtime library."""

    @staticmethod
    def cudaProfilerStart() -> int:
        return 0

    @staticmethod
    def cudaProfilerStop() -> int:
        return 0


def _cudart() -> type[_CudaRuntime]:
    return _CudaRuntime


def _check_error(res: int) -> None:
    """Of the calls above none can fail."""


class _EmitNvtx(contextlib.nullcontext):
    """``torch.autograd.profiler.emit_nvtx``: its ranges are for nsys, which sees nothing of this device."""

    def __init__(self, enabled: bool = True, record_shapes: bool = False) -> None:
        super().__init__()


_nvtx_ranges: list[contextlib.AbstractContextManager] = []


def _nvtx_push(msg: str, *_: Any, **__: Any) -> int:
    """NVTX ranges become ranges of torch's profiler."""
    scope = torch.profiler.record_function(msg)
    scope.__enter__()
    _nvtx_ranges.append(scope)
    return len(_nvtx_ranges) - 1


def _nvtx_pop() -> int:
    if not _nvtx_ranges:
        return -1
    _nvtx_ranges.pop().__exit__(None, None, None)
    return len(_nvtx_ranges)


class _TensorType(type):
    """``torch.cuda.FloatTensor`` and its kin: constructors, and types that isinstance() and type() know."""

    dtype: torch.dtype

    def __instancecheck__(cls, obj: Any) -> bool:
        return isinstance(obj, torch.Tensor) and obj.device.type == "npu" and obj.dtype == cls.dtype

    def __call__(cls, *args: Any) -> torch.Tensor:
        if args and all(isinstance(a, int) for a in args):
            return torch.empty(args, dtype=cls.dtype, device="npu")
        if not args:
            return torch.empty(0, dtype=cls.dtype, device="npu")
        return torch.tensor(args[0], dtype=cls.dtype, device="npu")

    def __str__(cls) -> str:
        return _TYPE_NAMES[cls.dtype]

    __repr__ = __str__


def _redirect_types() -> None:
    for name, dtype in TYPES.items():
        setattr(torch.cuda, name, _TensorType(name, (), {"dtype": dtype, "__module__": "torch.cuda"}))


def _redirect_tensor() -> None:
    to_type = torch.Tensor.type
    dtypes = {name: dtype for dtype, name in _TYPE_NAMES.items()}

    @functools.wraps(to_type)
    def type_(self: torch.Tensor, dtype: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
        if dtype is None:
            return _TYPE_NAMES[self.dtype] if _is_npu(self) and self.dtype in _TYPE_NAMES else to_type(self)
        wanted = dtypes.get(dtype if isinstance(dtype, str) else str(dtype))
        if wanted is not None:
            return self.to("npu", wanted, non_blocking=non_blocking)
        return to_type(self, dtype, non_blocking, **kwargs)

    def cuda(
        self: torch.Tensor,
        device: Any = None,
        non_blocking: bool = False,
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> torch.Tensor:
        target = torch.device("npu", streams.device_index(device))
        return self.to(target, non_blocking=non_blocking, memory_format=memory_format)

    torch.Tensor.type = type_
    # torch's own refuses an index: it reads cuda(0) as device 0 of the accelerator, and that is npu.
    torch.Tensor.cuda = cuda
    torch.Tensor.is_cuda = property(_is_npu, doc="Scripts ask it to mean 'on the accelerator'.")


def _is_npu(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "npu"


def _redirect_generator() -> None:
    base = torch._C.Generator

    class GeneratorType(type(base)):
        def __instancecheck__(cls, obj: Any) -> bool:
            return isinstance(obj, base)

    class Generator(base, metaclass=GeneratorType):
        __doc__ = base.__doc__

        def __new__(cls, device: Any = "cpu") -> torch.Generator:
            return base(device=_npu_for_cuda(device))

    torch.Generator = Generator


def _npu_for_cuda(device: Any) -> Any:
    """`device` with type cuda replaced by npu; anything else as it is."""
    if isinstance(device, (str, torch.device)) and torch.device(device).type == "cuda":
        index = torch.device(device).index
        return torch.device("npu") if index is None else torch.device("npu", index)
    return device


def _redirect_device_mesh() -> None:
    """A mesh for "cuda" is one for npu: FSDP2 and DTensor compare its type with that of the parameters."""
    init = DeviceMesh.__init__

    @functools.wraps(init)
    def mesh_init(self: DeviceMesh, device_type: str, *args: Any, **kwargs: Any) -> None:
        init(self, "npu" if device_type == "cuda" else device_type, *args, **kwargs)

    DeviceMesh.__init__ = mesh_init


def _with_npu_default(function: Callable) -> Callable:
    """For torch's autocast queries, whose first argument is a device type that defaults to cuda."""

    @functools.wraps(function)
    def call(device_type: str = "cuda", *args: Any) -> Any:
        return function("npu" if device_type == "cuda" else device_type, *args)

    return call


def _redirect_autocast() -> None:
    init = torch.amp.autocast_mode.autocast.__init__

    @functools.wraps(init)
    def autocast_init(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        init(self, "npu" if device_type == "cuda" else device_type, *args, **kwargs)

    torch.amp.autocast_mode.autocast.__init__ = autocast_init
    for name in ("is_autocast_enabled", "get_autocast_dtype", "set_autocast_enabled", "set_autocast_dtype"):
        setattr(torch, name, _with_npu_default(getattr(torch, name)))
    torch.get_autocast_gpu_dtype = lambda: torch.get_autocast_dtype("npu")


def _redirect_serialization() -> None:
    """torch.load of tensors that were saved on CUDA, or with map_location="cuda"."""

    def load(storage: Any, location: str) -> Any:
        if not location.startswith("cuda"):
            return None
        device = _npu_for_cuda(location)
        if device.index is not None and device.index >= npu.device_count():
            raise RuntimeError(
                f"Attempting to deserialize object on {location}, but only {npu.device_count()} npu "
                "device(s) are visible; use torch.load with map_location to map it to an existing device."
            )
        return storage.to(device=device)

    torch.serialization.register_package(
        15, lambda _storage: None, load
    )  # before torch's own cuda entry (20)
