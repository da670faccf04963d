"""DLPack export of npu tensors.

torch's own ``Tensor.__dlpack__`` knows this device by its old name, "privateuse1", and refuses. On the CPU
target the memory is host memory and is exported as such, without a copy; opaque memory as a copy.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from mindspeed_ms import _runtime

KDL_CPU = 1
"""DLDeviceType of host memory in the DLPack header."""


def install() -> None:
    """Teaches ``torch.Tensor`` to export npu tensors, for ``numpy.from_dlpack`` and other libraries."""
    export, device = torch.Tensor.__dlpack__, torch.Tensor.__dlpack_device__

    @functools.wraps(export)
    def dlpack(self: torch.Tensor, **options: Any) -> Any:
        if self.device.type != "npu":
            return export(self, **options)
        if self.requires_grad:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
        if not _runtime.opaque_memory():
            return export(_runtime.host_alias(self), **{**options, "stream": None})
        if options.get("copy") is False:
            raise BufferError("npu memory is opaque (MINDSPEED_MS_MEMORY): only a copy can be exported.")
        return export(self.cpu(), **{**options, "stream": None})

    @functools.wraps(device)
    def dlpack_device(self: torch.Tensor) -> tuple[int, int]:
        return (KDL_CPU, 0) if self.device.type == "npu" else device(self)

    torch.Tensor.__dlpack__ = dlpack
    torch.Tensor.__dlpack_device__ = dlpack_device
