"""``torch.nn.DataParallel``, which scripts wrap around a model of one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mindspeed_ms.device.streams import device_index
from mindspeed_ms.patches.registry import around


@around("torch.nn.parallel.comm:scatter", reason="torch's own is C++ code of a build with CUDA")
def scatter(
    original: Callable[..., Any],
    tensor: torch.Tensor,
    devices: Sequence[Any] | None = None,
    chunk_sizes: Sequence[int] | None = None,
    dim: int = 0,
    streams: Any = None,
    *,
    out: Any = None,
) -> tuple[torch.Tensor, ...]:
    """The tensor on the one device named. Raises NotImplementedError for several, and for ``out``."""
    if out is not None or devices is None or len(devices) != 1:
        raise NotImplementedError(
            "torch.nn.DataParallel over several devices of a process is not implemented: use "
            "DistributedDataParallel, with a process for each device"
        )
    return (tensor.to(torch.device("npu", device_index(devices[0]))),)
