"""Opaque device memory: the C++ runtime reads and writes it only through these functions of ``ms.Tensor``.

On Ascend an npu storage is a flat ``ms.Tensor`` whose address torch must not use. The same mode runs on the
CPU target (MINDSPEED_MS_MEMORY=opaque), where the tests exercise it.
"""

from __future__ import annotations

import torch
from mindspeed_ms import _runtime
from mindspeed_ms.device.mindspore import dtype_of, target


def install() -> None:
    """Hands the hooks to the C++ runtime."""
    write = _write_ascend if target() == "Ascend" else _write_cpu
    flatten = _flatten if target() == "Ascend" else _flatten_cpu
    hooks = {"to_host": _to_host, "from_host": _from_host, "view": _view, "write": write, "flatten": flatten}
    _runtime.set_opaque_hooks(hooks)


def _to_host(flat) -> torch.Tensor:
    """Contiguous CPU copy of a flat ms.Tensor."""
    import mindspore as ms

    if flat.dtype == ms.bfloat16:  # numpy has no bfloat16: the bits travel as int16
        return torch.from_numpy(_bits(flat).asnumpy().copy()).view(torch.bfloat16)
    return torch.from_numpy(flat.asnumpy().copy())


def _from_host(host: torch.Tensor):
    """Flat ms.Tensor holding a copy of a contiguous 1-D CPU tensor."""
    import mindspore as ms

    if host.dtype == torch.bfloat16:
        return _from_bits(ms.Tensor(host.view(torch.int16).numpy()))
    return ms.Tensor(host.numpy(), dtype_of(host.dtype))


def _bits(tensor):
    import mindspore as ms
    from mindspore.ops import auto_generate as ag

    return ag.view_dtype(tensor, ms.int16)


def _from_bits(tensor):
    import mindspore as ms
    from mindspore.ops import auto_generate as ag

    return ag.view_dtype(tensor, ms.bfloat16)


def _view(flat, size: tuple, stride: tuple, offset: int):
    """ms.Tensor view of `flat`'s memory; the whole of it needs no as_strided."""
    from mindspore.ops import auto_generate as ag

    return ag.as_strided(flat, size, stride, offset)


def _flatten(tensor):
    """1-D contiguous ms.Tensor of the elements of `tensor`, in memory that nothing else uses."""
    dense = tensor if tensor.is_contiguous() else tensor.contiguous()
    return dense.reshape(-1)


def _flatten_cpu(tensor):
    """As :func:`_flatten`, in memory of its own: MindSpore's CPU kernels may hand an argument back."""
    return _from_host(_to_host(_flatten(tensor)))


def _write_ascend(flat, size: tuple, stride: tuple, offset: int, source) -> None:
    _view(flat, size, stride, offset).copy_(source.reshape(size))


def _write_cpu(flat, size: tuple, stride: tuple, offset: int, source) -> None:
    """MindSpore's CPU ``copy_`` into a view writes nowhere (2.10.0), so the bytes are written by address."""
    import numpy as np

    source = source if source.is_contiguous() else source.contiguous()
    memory = _bytes_of(flat)
    strides = [s * memory.itemsize for s in stride]
    view = np.lib.stride_tricks.as_strided(memory[offset:], tuple(size), strides)
    view[...] = _bytes_of(source).reshape(size)


def _bytes_of(tensor):
    """1-D numpy array over the elements of a contiguous ms.Tensor; ``asnumpy`` would copy those of a view."""
    import ctypes

    import numpy as np

    buffer = (ctypes.c_char * (tensor.size * tensor.itemsize)).from_address(tensor.data_ptr())
    return np.frombuffer(buffer, dtype=f"V{tensor.itemsize}")
