"""Stand-ins for tensors that an engine cannot take as they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from mindspeed_ms import _native, _runtime
from mindspeed_ms.comm.engine import DTYPES, NO_OP, REDUCTIONS

HCCL_REDUCES = frozenset(
    {torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32}
)
"""What HCCL adds up and compares (HcclDataType of HcclAllReduce). It moves every type."""
HCCL_MULTIPLIES = HCCL_REDUCES - {torch.int16, torch.bfloat16}
_BY_HCCL = frozenset(REDUCTIONS[name] for name in ("SUM", "AVG", "PREMUL_SUM", "PRODUCT", "MAX", "MIN"))
"""Made of what HCCL has (.ascend); others, the bitwise ones, are the hosts'."""


def _by_the_host(tensor: torch.Tensor, reducing: int) -> bool:
    """Whether the hosts make this reduction, as their devices cannot: of float64, bytes or bits on Ascend."""
    if reducing == NO_OP or tensor.device.type != "npu" or not _runtime.opaque_memory():
        return False
    takes = HCCL_MULTIPLIES if reducing == REDUCTIONS["PRODUCT"] else HCCL_REDUCES
    return reducing not in _BY_HCCL or tensor.dtype not in takes


class Staging:
    """Contiguous stand-ins, in an element type that the engines know, for the tensors of one collective.

    Those of tensors that a device cannot reduce are on the host.
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
        return (plain.cpu() if _by_the_host(plain, self._reducing) else plain).contiguous()

    def write(self, tensor: torch.Tensor, keep: bool = False) -> torch.Tensor:
        """``keep``: the collective also reads it."""
        plain = self._plain(tensor)
        by_host = _by_the_host(plain, self._reducing)
        if plain.is_contiguous() and not by_host:
            return plain
        device = "cpu" if by_host else plain.device
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
