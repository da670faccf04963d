"""How a kernel call reaches machine code: addresses, dtype codes, thread count, instruction set."""

from __future__ import annotations

from types import ModuleType

import torch
from mindspeed_ms import _runtime
from mindspeed_ms._native import kernels as _native

#: Storage types of the native kernels and their codes.
DTYPE_CODES: dict[torch.dtype, int] = {getattr(torch, name): code for name, code in _native.DTYPES.items()}

_threads = 0


def native() -> ModuleType:
    """The native kernels, with their pool at torch's thread count."""
    global _threads
    wanted = torch.get_num_threads()
    if wanted != _threads:
        _native.set_threads(wanted)
        _threads = wanted
    return _native


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
            'use routes.route("composite")'
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
