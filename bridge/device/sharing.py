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


def install(register_operators: Callable[[], None]) -> None:
    """Teaches the pickler of ``torch.multiprocessing`` to send npu tensors and parameters.

    Args:
        register_operators: what the receiver's device is enabled with, a function of a module.
    """
    ForkingPickler.register(torch.Tensor, _reduce(reductions.reduce_tensor, register_operators))
    ForkingPickler.register(torch.nn.Parameter, _reduce(reductions.reduce_tensor, register_operators))


def _reduce(
    original: Callable[[torch.Tensor], Any], register_operators: Callable[[], None]
) -> Callable[[torch.Tensor], Any]:
    def reduce(tensor: torch.Tensor) -> Any:
        if tensor.device.type != "npu":
            return original(tensor)
        if tensor.requires_grad and not tensor.is_leaf:
            raise RuntimeError("A tensor with a grad_fn cannot be sent to another process: detach it first.")
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        return _arrive, (register_operators, tensor.detach().cpu(), tensor.requires_grad, is_parameter)

    return reduce


def _arrive(
    register_operators: Callable[[], None], host: torch.Tensor, requires_grad: bool, is_parameter: bool
) -> torch.Tensor:
    """In the other process, which may not have the device yet."""
    from mindspeed_ms import device

    device.enable(register_operators)
    tensor = host.to("npu")
    return torch.nn.Parameter(tensor, requires_grad) if is_parameter else tensor.requires_grad_(requires_grad)
