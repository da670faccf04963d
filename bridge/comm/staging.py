"""Stand-ins for tensors that an engine cannot take as they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from mindspeed_ms import _native, _runtime
from mindspeed_ms.comm.engine import DTYPES, NO_OP
from mindspeed_ms.comm.topology import through_mindspore


def _has_no_address(tensor: torch.Tensor) -> bool:
    """Whether an engine on host memory cannot reach this tensor: an npu tensor in opaque memory."""
    return tensor.device.type == "npu" and _runtime.opaque_memory() and not through_mindspore()


class Staging:
    """Contiguous stand-ins, in an element type that the engines know, for the tensors of one collective.

    Those of tensors in opaque memory are on the host.
    """

    def __init__(self, reducing: int) -> None:
        self._reducing = reducing
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def _plain(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach()
        if tensor.is_sparse or tensor.is_quantized:
            raise TypeError(
                f"backend mindspore moves dense tensors only, got {tensor.layout}, {tensor.dtype}"
            )
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
        if tensor.dtype not in DTYPES:
            if self._reducing != NO_OP or tensor.element_size() != 1:
                raise TypeError(f"backend mindspore cannot reduce or send {tensor.dtype}")
            tensor = tensor.view(torch.uint8)
        if self._reducing != NO_OP and not _native.comm.reduce_supported(
            DTYPES[tensor.dtype], self._reducing
        ):
            name = dist.ReduceOp.RedOpType(self._reducing).name
            raise TypeError(f"reduction {name} is not defined for {tensor.dtype}")
        return tensor

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        plain = self._plain(tensor)
        return (plain.cpu() if _has_no_address(plain) else plain).contiguous()

    def write(self, tensor: torch.Tensor, keep: bool = False) -> torch.Tensor:
        """``keep``: the collective also reads it."""
        plain = self._plain(tensor)
        hidden = _has_no_address(plain)
        if plain.is_contiguous() and not hidden:
            return plain
        device = "cpu" if hidden else plain.device
        if keep:
            copy = plain.to(device).contiguous()
        else:
            copy = torch.empty(plain.shape, dtype=plain.dtype, device=device)
        self._copies.append((plain, copy))
        return copy

    def finisher(self) -> Callable[[], None] | None:
        """What copies the stand-ins back; None when there is nothing to copy."""
        copies = self._copies
        if not copies:
            return None

        def copy_back() -> None:
            for target, source in copies:
                target.copy_(source)

        return copy_back
