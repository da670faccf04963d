"""Chunks of rows in another order, as the experts of several ranks need them."""

from __future__ import annotations

import itertools

import torch
from mindspeed_ms.kernels.permutation import gather_rows


def sort_chunks(sizes: torch.Tensor, order: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Each of `tensors` (rows, ...) with its chunks, `sizes[i]` rows each, in the order of `order`."""
    ends = [0, *itertools.accumulate(sizes.tolist())]
    chunks = [torch.arange(ends[i], ends[i + 1]) for i in order.tolist()]
    rows = torch.cat(chunks or [torch.empty(0, dtype=torch.int64)]).to(tensors[0].device)
    return [gather_rows(tensor, rows) for tensor in tensors]
