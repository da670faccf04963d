"""Functions of torch that take a device by name and do not dispatch: "cuda" means npu to them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from mindspeed_ms.patches.registry import around, factory, replace


def npu_for_cuda(device: Any) -> Any:
    """``device`` with type cuda replaced by npu; anything else as it is."""
    if isinstance(device, (str, torch.device)) and torch.device(device).type == "cuda":
        index = torch.device(device).index
        return torch.device("npu") if index is None else torch.device("npu", index)
    return device


@around(
    "torch.storage:UntypedStorage.__new__", reason="it is made by C++ code that knows no other device as cuda"
)
def untyped_storage(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Torch's own, on npu where ``device`` is cuda."""
    if "device" in kwargs:
        kwargs["device"] = npu_for_cuda(kwargs["device"])
    return original(*args, **kwargs)


@factory("torch:Generator", reason="it is made by C++ code that knows no other device by the name cuda")
def generator_type(base: Any) -> type:
    """``torch.Generator`` that makes one of npu for cuda; every generator is an instance of it."""

    meta: Any = type(base)

    class GeneratorType(meta):
        def __instancecheck__(cls, obj: Any) -> bool:
            return isinstance(obj, base)

    class Generator(base, metaclass=GeneratorType):
        __doc__ = base.__doc__

        def __new__(cls, device: Any = "cpu") -> Any:
            return base(device=npu_for_cuda(device))

    return Generator


@around(
    "torch.serialization:default_restore_location",
    reason="tensors that were saved on CUDA, or are loaded with map_location=cuda, go to npu",
)
def default_restore_location(original: Callable[..., Any], storage: Any, location: str) -> Any:
    """Torch's own, for npu where ``location`` is cuda."""
    return original(storage, f"npu{location[4:]}" if location.startswith("cuda") else location)


AUTOCAST = "autocast to cuda is autocast to npu"


@around("torch.amp.autocast_mode:autocast.__init__", reason=AUTOCAST)
def autocast(original: Callable[..., None], self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
    """Torch's own, for npu where ``device_type`` is cuda."""
    original(self, "npu" if device_type == "cuda" else device_type, *args, **kwargs)


@around("torch.amp.autocast_mode:_cast", reason="custom_fwd(device_type=cuda) casts the tensors of npu")
def cast(original: Callable[..., Any], value: Any, device_type: str, dtype: torch.dtype) -> Any:
    """Torch's own, for npu where ``device_type`` is cuda."""
    return original(value, "npu" if device_type == "cuda" else device_type, dtype)


def _with_npu_default(function: Callable[..., Any]) -> Callable[..., Any]:
    """For torch's autocast queries, whose first argument is a device type that defaults to cuda."""

    @functools.wraps(function)
    def call(device_type: str = "cuda", *args: Any) -> Any:
        return function("npu" if device_type == "cuda" else device_type, *args)

    return call


for _name in ("is_autocast_enabled", "get_autocast_dtype", "set_autocast_enabled", "set_autocast_dtype"):
    factory(f"torch:{_name}", reason=AUTOCAST)(_with_npu_default)


@replace("torch:get_autocast_gpu_dtype", reason=AUTOCAST)
def get_autocast_gpu_dtype() -> torch.dtype:
    """The dtype for npu."""
    return torch.get_autocast_dtype("npu")
