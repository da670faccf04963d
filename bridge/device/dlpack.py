"""DLPack export of npu tensors: host memory without a copy on the CPU target, opaque memory as a copy."""

from __future__ import annotations

from typing import Any

import torch
from mindspeed_ms import _runtime

HOST = (1, 0)
"""Host memory as DLPack names it: DLDeviceType kDLCPU, device 0."""


def exportable(tensor: torch.Tensor, copy: bool | None = None, **_options: Any) -> torch.Tensor:
    """The CPU tensor to export in place of an npu tensor, for ``numpy.from_dlpack`` and other libraries.

    Raises BufferError for a tensor that requires gradients, and for opaque memory if ``copy`` is False.
    """
    if tensor.requires_grad:
        raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
    if not _runtime.opaque_memory():
        return _runtime.host_alias(tensor)
    if copy is False:
        raise BufferError("npu memory is opaque on Ascend: only a copy can be exported.")
    return tensor.cpu()
