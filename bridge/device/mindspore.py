"""Where MindSpore is started, by the first operator that runs on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

import torch
from mindspeed_ms import _runtime
from mindspeed_ms.config import settings
from mindspeed_ms.device import cann, device_streams, opaque

DTYPES = {
    "bool_": torch.bool,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
}
"""MindSpore dtype name -> torch dtype."""

SCALAR_TYPES = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.float32, torch.float64, torch.complex32, torch.complex64, torch.complex128),
    *(torch.bool, torch.qint8, torch.quint8, torch.qint32, torch.bfloat16),
)
"""In the order of c10::ScalarType."""


def target() -> str:
    """``CPU`` or ``Ascend``, from MINDSPEED_MS_TARGET."""
    return settings.TARGET.value


_started = False


def started() -> bool:
    """Whether MindSpore is there to run operators."""
    return _started


def start() -> None:
    """Imports MindSpore (2-3 s), sets its target and installs what borrowing needs. Once per process."""
    global _started
    if _started:
        return
    if target() == "Ascend":
        cann.require()
        # MindSpore hands an eager operator through four threads, and each question after a result (its shape,
        # its address) waits for all of them: 50-100 times what a launch costs. With this the calling thread
        # launches; the device stays asynchronous.
        os.environ.setdefault("MS_DEV_HOST_BLOCKING_RUN", "1")
    import mindspore as ms

    if target() == "Ascend":
        # Left alone, MindSpore gives every rank that torchrun starts the device 0.
        ms.set_device("Ascend", _runtime.current_device())
    else:
        ms.set_device("CPU")
        # Eager operators in the calling thread: 16 us instead of 730 us for an add, and an error is raised by
        # the operator that failed, not by a later one.
        ms.runtime.launch_blocking()
    from mindspore._c_expression import TensorPy

    _runtime.set_mindspore(
        TensorPy.from_dlpack,
        ms.Tensor.from_numpy,
        {getattr(ms, name): _scalar_type_number(dtype) for name, dtype in DTYPES.items()},
    )
    if _runtime.opaque_memory():
        opaque.install()
        device_streams.install()
    _started = True


def _scalar_type_number(dtype: torch.dtype) -> int:
    """c10::ScalarType of `dtype`; torch keeps the numbers fixed because files contain them."""
    return SCALAR_TYPES.index(dtype)


@cache
def dtype_of(dtype: torch.dtype) -> Any:
    """MindSpore's counterpart of a torch dtype.

    Raises:
        TypeError: MindSpore has none.
    """
    import mindspore as ms

    for name, candidate in DTYPES.items():
        if candidate is dtype:
            return getattr(ms, name)
    raise TypeError(f"{dtype} has no MindSpore counterpart.")


@lru_cache(maxsize=256)
def number(value: int) -> Any:
    """int64 ``ms.Tensor`` of a number that an operator of MindSpore reads on the host: a seed, a size.

    With MS_DEV_DISABLE_AUTO_H2D=1 operators on Ascend take nothing from the host, not even this: it is made
    on the device, and MindSpore waits for the device to read it.
    """
    import mindspore as ms
    from mindspore import mint

    if os.environ.get("MS_DEV_DISABLE_AUTO_H2D") == "1" and target() == "Ascend":
        return mint.full((), value, dtype=ms.int64)
    return ms.Tensor(value, ms.int64)


@contextmanager
def alone() -> Iterator[None]:
    """Keeps other threads from MindSpore: on CPU it crashes when two run it at once. May be nested."""
    _runtime.lock_mindspore()
    try:
        yield
    finally:
        _runtime.unlock_mindspore()


def module() -> ModuleType:
    """The started MindSpore module."""
    _runtime.ensure_initialized()
    start()
    import mindspore

    return mindspore
