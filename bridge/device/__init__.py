"""The torch device ``npu``: torch's storages, views and autograd over operators of MindSpore.

:func:`enable` registers the device; ``mindspeed_ms.patch`` calls it. MindSpore itself is imported by the
first operator that runs on it (:mod:`.mindspore`), not before; on Ascend, whose memory is MindSpore's, by the
first npu tensor.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mindspeed_ms import _runtime
from mindspeed_ms.device import cann, mindspore, npu, sharing

__all__ = ["enable", "from_mindspore", "redirect_cuda", "to_mindspore"]

_enabled = _redirected = False


def enable(register_operators: Callable[[], None]) -> None:
    """Registers device ``npu`` and ``torch.npu`` with torch. Idempotent.

    Args:
        register_operators: called once, at the first use of the device: enters the operators' own kernels,
            which the device itself knows nothing of.

    Environment:
        LOCAL_WORLD_SIZE: on the CPU target, number of npu devices (ranks of this host), 1 by default.
        LOCAL_RANK: on Ascend, the card of this process unless it chooses another before its first tensor.
        TARGET of :mod:`mindspeed_ms.config.settings`.

    Raises:
        ValueError: an environment variable has a value that is not possible.
    """
    global _enabled
    if _enabled:
        return
    _runtime.set_target(mindspore.target())
    _runtime.set_opaque_memory(mindspore.target() == "Ascend")
    _count_devices()
    _runtime.register_device()

    def initialize() -> None:
        npu.count_ranks()
        if _runtime.opaque_memory():  # it is MindSpore's own
            mindspore.start()
        register_operators()

    _runtime.set_initializer(initialize)
    _runtime.set_mindspore_starter(mindspore.start)
    torch.utils.rename_privateuse1_backend("npu")
    torch._register_device_module("npu", npu)
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    sharing.install(partial(enable, register_operators))
    # Backward of npu tensors on the thread that calls it, as for CPU tensors: no hand-over per graph task,
    # and the OpenMP team of the caller is used. Other threads keep torch's default (they take turns at
    # MindSpore).
    torch.autograd.set_multithreading_enabled(False)
    _enabled = True


def _count_devices() -> None:
    """How many devices there are and, on Ascend, which is this process's. Without CANN the first tensor says
    so."""
    if not _runtime.opaque_memory():
        npu.count_ranks()
        return
    count = max(1, cann.device_count())
    _runtime.set_device_count(count)
    _runtime.use_one_card(int(os.environ.get("LOCAL_RANK", "0")) % count)


def redirect_cuda() -> None:
    """Has torch's dispatcher make what is asked for on device "cuda" on npu. Idempotent; not to be undone."""
    global _redirected
    if not _redirected:
        _runtime.register_cuda_redirect()
        _redirected = True


def to_mindspore(tensor: torch.Tensor) -> Any:
    """``ms.Tensor`` over the memory of an npu tensor, without a copy; it keeps that memory alive.

    Shape, strides and dtype are kept (bool: only contiguous memory is shared, else a copy is lent).
    """
    _runtime.ensure_initialized()
    return _runtime.to_mindspore(tensor)


def from_mindspore(tensor: Any, device: int | None = None) -> torch.Tensor:
    """npu tensor over the memory of an ``ms.Tensor``; a copy only if that is not contiguous.

    Raises:
        TypeError: the dtype has no counterpart in torch.
    """
    _runtime.ensure_initialized()
    return _runtime.from_mindspore(tensor, _runtime.current_device() if device is None else device)
