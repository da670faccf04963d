"""Tensors sent to another process: npu tensors go as host memory, a copy, and arrive on the device again.

CUDA sends a handle of device memory (CUDA IPC), and the processes share the tensor. Here the receiver gets
its own: Megatron's persistent checkpoint worker, which only reads what it is sent, sees no difference.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.multiprocessing import reductions


def install(enable: Callable[[], None]) -> None:
    """Teaches the pickler of ``torch.multiprocessing`` to send npu tensors and parameters.

    Args:
        enable: what enables the device of the receiver; it can be pickled.
    """
    ForkingPickler.register(torch.Tensor, _reduce(reductions.reduce_tensor, enable))
    ForkingPickler.register(torch.nn.Parameter, _reduce(reductions.reduce_tensor, enable))


def _reduce(
    original: Callable[[torch.Tensor], Any], enable: Callable[[], None]
) -> Callable[[torch.Tensor], Any]:
    def reduce(tensor: torch.Tensor) -> Any:
        if tensor.device.type != "npu":
            return original(tensor)
        if tensor.requires_grad and not tensor.is_leaf:
            raise RuntimeError("A tensor with a grad_fn cannot be sent to another process: detach it first.")
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        return _arrive, (enable, tensor.detach().cpu(), tensor.requires_grad, is_parameter)

    return reduce


def _arrive(
    enable: Callable[[], None], host: torch.Tensor, requires_grad: bool, is_parameter: bool
) -> torch.Tensor:
    """In the other process, which may not have the device yet."""
    enable()
    tensor = host.to("npu")
    return torch.nn.Parameter(tensor, requires_grad) if is_parameter else tensor.requires_grad_(requires_grad)
