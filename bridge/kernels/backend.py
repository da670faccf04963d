"""How a kernel call reaches machine code: implementation, dtype codes, thread count, instruction set."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import torch
from mindspeed_ms import _runtime
from mindspeed_ms._native import kernels as _native
from mindspeed_ms.config import settings

#: Storage types of the native kernels, by the codes of csrc/kernels/prelude.h.
DTYPE_CODES: dict[torch.dtype, int] = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

IMPLEMENTATIONS = ("csrc", "composite")

_threads = 0


def _known(name: str | None) -> str | None:
    if name is not None and name not in IMPLEMENTATIONS:
        raise ValueError(f"unknown kernel implementation {name!r}; use one of {IMPLEMENTATIONS} or None")
    return name


_forced = settings.KERNELS.value


def force_implementation(name: str | None) -> None:
    """Makes every kernel use one implementation: "csrc" or "composite"; None chooses per call.

    MINDSPEED_MS_KERNELS sets the same at start.
    """
    global _forced
    _forced = _known(name)


@cache
def on_ascend() -> bool:
    """Whether the device target is Ascend (MINDSPEED_MS_TARGET)."""
    from mindspeed_ms.device.mindspore import target

    return target() == "Ascend"


def implementation(*tensors: torch.Tensor | None) -> str:
    """Which implementation takes these tensors: native for fp32, bf16 and fp16, else the composite.

    Native is "mindspore" for npu tensors where the target is Ascend, "csrc" elsewhere. The composite, too,
    for npu tensors in opaque memory on the CPU target, which has no address that native code could read, for
    wrappers (a DTensor), which have no memory at all, and on route host, whose numbers are those of torch's
    operators.
    """
    if _forced == "composite":
        return "composite"
    npu = any(t is not None and t.device.type == "npu" for t in tensors)
    if npu and _runtime.route_mode() == _runtime.RouteMode.host:
        return "composite"
    for tensor in tensors:
        if tensor is not None and (tensor.dtype not in DTYPE_CODES or _is_wrapper(tensor)):
            return "composite"
    if npu and on_ascend():
        return "mindspore"
    return "composite" if npu and _runtime.opaque_memory() else "csrc"


def _is_wrapper(tensor: torch.Tensor) -> bool:
    return type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def native() -> ModuleType:
    """The native kernels, with their pool at torch's thread count."""
    global _threads
    wanted = torch.get_num_threads()
    if wanted != _threads:
        _native.set_threads(wanted)
        _threads = wanted
    return _native


def counted(name: str, tensor: torch.Tensor) -> AbstractContextManager:
    """Counts its body as one call of kernel `name` on route csrc, for npu tensors."""
    if tensor.device.type != "npu":
        return nullcontext()
    return _runtime.Timed(f"mindspeed_ms::{name}", tensor.dtype)


def counted_on_mindspore(name: str, dtype: torch.dtype) -> AbstractContextManager:
    """Counts its body as one call of kernel `name` on route mindspore."""
    return _runtime.Timed(f"mindspeed_ms::{name}", dtype, on_mindspore=True)


def launch(kernel: str, tensor: torch.Tensor, *arguments: Any) -> Any:
    """Calls a native kernel on raw arguments, counted under its name, with the dtype of `tensor`."""
    with counted(kernel, tensor):
        return getattr(native(), kernel)(*arguments)


def version(tensor: torch.Tensor) -> int | None:
    """What changes when the tensor is written to; None for one of inference mode, which keeps no count."""
    return None if tensor.is_inference() else tensor._version


def draw_seed(like: torch.Tensor, generator: torch.Generator | None = None) -> int:
    """A seed from `generator`, by default that of the tensor's device: RNG trackers and recompute know it.

    Drawn on the host, without waiting for the device; the number is that of random_() on the device.
    """
    if generator is None and like.device.type == "npu":
        generator = _runtime.default_generator(like.device.index)
    if generator is not None:
        generator = _runtime.engine_of(generator)
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))


def pointer(tensor: torch.Tensor | None) -> int:
    """Address of the tensor's first element; 0 for None. The tensor must be contiguous and in host memory."""
    return 0 if tensor is None else tensor.data_ptr()


def dtype_code(tensor: torch.Tensor | None) -> int:
    """Native code of the tensor's dtype; 0 (fp32) for None. TypeError for a dtype without native kernels."""
    if tensor is None:
        return 0
    try:
        return DTYPE_CODES[tensor.dtype]
    except KeyError:
        raise TypeError(
            f"native kernels take float32, bfloat16 and float16, not {tensor.dtype}; convert the tensor or "
            'use force_implementation("composite")'
        ) from None


def isa() -> str:
    """Name of the instruction set in use: "portable", "avx2", "avx512" or "avx512_bf16"."""
    return _native.isa()


def best_isa() -> str:
    """Name of the fastest instruction set of this CPU."""
    return _native.best_isa()


def force_isa(name: str) -> None:
    """Forces an instruction set ("auto" for the best); ValueError if unknown or not available on this CPU.

    The environment variable MINDSPEED_MS_ISA sets the same at start.
    """
    _native.force_isa(name)
