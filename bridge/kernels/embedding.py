"""Gradient of an embedding table."""

from __future__ import annotations

import torch
from mindspeed_ms.kernels.backend import dtype_code, launch, pointer
from mindspeed_ms.kernels.dispatch import choose, on_mindspore


def embedding_grad(
    grad: torch.Tensor,
    ids: torch.Tensor,
    table_rows: int,
    *,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum of grad's rows by id: (table_rows, hidden), like aten::embedding_dense_backward.

    grad: (..., hidden) in fp32, bf16 or fp16; ids: integers (...,), those outside [0, table_rows) and
    `padding_idx` are ignored. Sums are fp32 and in a fixed order. With `out` (contiguous; fp32, bf16 or
    fp16, e.g. a main_grad) the sum is added to it and it is returned.
    """
    if grad.shape[:-1] != ids.shape:
        raise ValueError(f"embedding_grad: grad {tuple(grad.shape)} does not fit ids {tuple(ids.shape)}")
    hidden = grad.shape[-1]
    if out is not None and (out.shape != (table_rows, hidden) or not out.is_contiguous()):
        raise ValueError(
            f"embedding_grad: out must be contiguous ({table_rows}, {hidden}), got {tuple(out.shape)}"
        )
    flat = ids.reshape(-1).to(torch.int64)
    scale = None
    if scale_grad_by_freq:
        _, inverse, counts = flat.unique(return_inverse=True, return_counts=True)
        scale = (1.0 / counts.float())[inverse].contiguous()
    rows = grad.reshape(-1, hidden).contiguous()
    chosen = choose("embedding_grad", grad, out)
    if chosen == "mindspore":
        inside = (flat >= 0) & (flat < table_rows)
        rows = rows * inside.unsqueeze(-1)
        if scale is not None:
            rows = rows * scale.to(rows.dtype).unsqueeze(-1)
        table = on_mindspore("embedding_grad", rows, flat * inside, table_rows, padding_idx)
        return table if out is None else out.add_(table)
    if chosen == "composite":
        return _embedding_grad_composite(rows, flat, table_rows, padding_idx, scale, out)
    table = torch.zeros(table_rows, hidden, dtype=grad.dtype, device=grad.device) if out is None else out
    launch(
        "embedding_backward",
        rows,
        pointer(rows),
        pointer(flat),
        pointer(scale),
        pointer(table),
        rows.shape[0],
        hidden,
        table_rows,
        padding_idx,
        out is not None,
        dtype_code(rows),
        dtype_code(table),
    )
    return table


def _embedding_grad_composite(
    rows: torch.Tensor,
    ids: torch.Tensor,
    table_rows: int,
    padding_idx: int,
    scale: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    keep = (ids >= 0) & (ids < table_rows) & (ids != padding_idx)
    if scale is not None:
        rows = rows * scale.to(rows.dtype).unsqueeze(-1)
    table = rows.new_zeros(table_rows, rows.shape[-1]) if out is None else out
    return table.index_add_(0, ids[keep], rows[keep].to(table.dtype))
