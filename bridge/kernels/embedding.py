"""Gradient of an embedding table."""

from __future__ import annotations

from typing import Any

import torch
from mindspeed_ms.kernels.backend import dtype_code, native, pointer
from mindspeed_ms.kernels.operator import Operator


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
    if out is None:
        return _EMBEDDING_GRAD(rows, flat, scale, table_rows, padding_idx)
    _EMBEDDING_GRAD_INTO(out, rows, flat, scale, padding_idx)
    return out


def _check(rows: torch.Tensor, ids: torch.Tensor, *_: Any) -> None:
    if rows.dim() != 2 or ids.shape != rows.shape[:1] or ids.dtype != torch.int64:
        raise ValueError(
            f"embedding_grad: ids {tuple(ids.shape)} {ids.dtype} do not fit rows {tuple(rows.shape)}, "
            "expected int64, one a row"
        )


def _check_into(out: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor, *_: Any) -> None:
    _check(rows, ids)
    if out.dim() != 2 or out.shape[1] != rows.shape[1] or not out.is_contiguous():
        raise ValueError(
            f"embedding_grad: out {tuple(out.shape)} does not fit rows {tuple(rows.shape)}, "
            "or is not contiguous"
        )


# ---- composite


def _composite_into(
    out: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor, scale: torch.Tensor | None, padding_idx: int
) -> None:
    keep = (ids >= 0) & (ids < out.shape[0]) & (ids != padding_idx)
    if scale is not None:
        rows = rows * scale.to(rows.dtype).unsqueeze(-1)
    # Rows that count nowhere are zeros in row 0: choosing rows would ask the device how many there are.
    rows = torch.where(keep.unsqueeze(-1), rows, rows.new_zeros(()))
    out.index_add_(0, ids * keep, rows.to(out.dtype))


# ---- csrc


def _csrc_into(
    out: torch.Tensor,
    rows: torch.Tensor,
    ids: torch.Tensor,
    scale: torch.Tensor | None,
    padding_idx: int,
    add: bool = True,
) -> None:
    native().embedding_backward(
        grad=pointer(rows),
        ids=pointer(ids),
        row_scale=pointer(scale),
        table=pointer(out),
        rows=rows.shape[0],
        cols=rows.shape[1],
        table_rows=out.shape[0],
        skip=padding_idx,
        accumulate=add,
        dtype=dtype_code(rows),
        table_dtype=dtype_code(out),
    )


# ---- MindSpore: EmbeddingDenseBackward


def _mindspore(rows: Any, ids: Any, scale: Any, table_rows: int, padding_idx: int) -> Any:
    from mindspore import mint
    from mindspore.ops import auto_generate

    inside = mint.logical_and(mint.ge(ids, 0), mint.lt(ids, table_rows))
    rows = rows * inside.to(rows.dtype).reshape((-1, 1))
    if scale is not None:
        rows = rows * scale.to(rows.dtype).reshape((-1, 1))
    ids = ids * inside.to(ids.dtype)
    skipped = None if padding_idx < 0 else padding_idx  # -1 would be the last row
    return auto_generate.embedding_dense_backward_op(rows, ids, table_rows, skipped, False)


def _mindspore_into(out: Any, rows: Any, ids: Any, scale: Any, padding_idx: int) -> None:
    out.add_(_mindspore(rows, ids, scale, out.shape[0], padding_idx).to(out.dtype))


# ---- operators


def _table(into: Any, add: dict[str, bool]) -> Any:
    """The form that makes a table, of the one that adds to it."""

    def call(
        rows: torch.Tensor, ids: torch.Tensor, scale: torch.Tensor | None, table_rows: int, padding_idx: int
    ) -> torch.Tensor:
        table = rows.new_zeros(table_rows, rows.shape[1])
        into(table, rows, ids, scale, padding_idx, **add)
        return table

    return call


_EMBEDDING_GRAD = Operator(
    "embedding_grad(Tensor rows, Tensor ids, Tensor? scale, SymInt table_rows, int padding_idx) -> Tensor",
    decides=("rows",),
    fake=lambda rows, ids, scale, table_rows, padding_idx: rows.new_empty(table_rows, rows.shape[1]),
    composite=_table(_composite_into, {}),
    csrc=_table(_csrc_into, {"add": False}),
    mindspore=_mindspore,
    check=_check,
)

_EMBEDDING_GRAD_INTO = Operator(
    "embedding_grad_into(Tensor(a!) out, Tensor rows, Tensor ids, Tensor? scale, int padding_idx) -> ()",
    decides=("rows", "out"),
    fake=lambda *_: None,
    composite=_composite_into,
    csrc=_csrc_into,
    mindspore=_mindspore_into,
    check=_check_into,
)
