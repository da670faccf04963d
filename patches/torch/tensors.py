"""Methods of ``torch.Tensor`` that name CUDA, ``torch.cuda.FloatTensor`` and its kin, export to DLPack."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from mindspeed_ms.device import dlpack, streams
from mindspeed_ms.patches.registry import Patch, add, around, factory, replace

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
_NAMES = {dtype: f"torch.cuda.{name}" for name, dtype in TYPES.items()}


class TensorType(type):
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
        return _NAMES[cls.dtype]

    __repr__ = __str__


for _name, _dtype in TYPES.items():
    add(
        Patch(
            f"torch.cuda:{_name}",
            TensorType(_name, (), {"dtype": _dtype, "__module__": "torch.cuda"}),
            "torch's own makes tensors of CUDA, and no tensor of npu is an instance of it",
        )
    )


@factory("torch:Tensor.type", reason="scripts compare the answer with torch.cuda.FloatTensor, and ask for it")
def tensor_type(original: Callable[..., Any]) -> Callable[..., Any]:
    """``Tensor.type`` that knows the types above."""
    dtypes = {name: dtype for dtype, name in _NAMES.items()}

    @functools.wraps(original)
    def to_type(self: torch.Tensor, dtype: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
        if dtype is None:
            ours = _is_npu(self) and self.dtype in _NAMES
            return _NAMES[self.dtype] if ours else original(self)
        wanted = dtypes.get(dtype if isinstance(dtype, str) else str(dtype))
        if wanted is not None:
            return self.to("npu", wanted, non_blocking=non_blocking)
        return original(self, dtype, non_blocking, **kwargs)

    return to_type


@replace(
    "torch:Tensor.cuda",
    reason="torch's own refuses an index: it reads cuda(0) as device 0 of the accelerator, and that is npu",
)
def cuda(
    self: torch.Tensor,
    device: Any = None,
    non_blocking: bool = False,
    memory_format: torch.memory_format = torch.preserve_format,
) -> torch.Tensor:
    """The tensor on device npu."""
    target = torch.device("npu", streams.device_index(device))
    return self.to(target, non_blocking=non_blocking, memory_format=memory_format)


def _is_npu(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "npu"


add(
    Patch(
        "torch:Tensor.is_cuda",
        property(_is_npu, doc="Scripts ask it to mean 'on the accelerator'."),
        "scripts ask it to mean 'on the accelerator'",
    )
)

OLD_NAME = "torch's own knows the device by its old name, privateuse1, and refuses"


@around("torch:Tensor.__dlpack__", reason=OLD_NAME)
def to_dlpack(original: Callable[..., Any], self: torch.Tensor, *args: Any, **options: Any) -> Any:
    """The capsule: see :mod:`mindspeed_ms.device.dlpack`."""
    if not _is_npu(self):
        return original(self, *args, **options)
    return original(dlpack.exportable(self, **options), **{**options, "stream": None})


@around("torch:Tensor.__dlpack_device__", reason=OLD_NAME)
def dlpack_device(original: Callable[..., Any], self: torch.Tensor) -> tuple[int, int]:
    """Host memory."""
    return dlpack.HOST if _is_npu(self) else original(self)
