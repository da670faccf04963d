"""Losses."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mindspeed_ms.ops.dtypes import cast, torch_dtype
from mindspeed_ms.ops.names import ag, mint, ms, ops
from mindspeed_ms.ops.registry import ASCEND_FLOATS, FLOATS, Inputs, Kernel, row

_REDUCTIONS = ("none", "mean", "sum")


def mse_loss(x: ms.Tensor, target: ms.Tensor, reduction: int) -> Any:
    squares = ag.square(ag.sub(x, target))
    if reduction == 0:
        return squares
    if reduction == 1:
        return ag.mean_ext(squares, None, False, None)
    return ag.sum_ext(squares, None, False, None)


def ascend_mse_loss(x: ms.Tensor, target: ms.Tensor, reduction: int) -> Any:
    return ag.mse_loss_ext(x, target, _REDUCTIONS[reduction])


row(
    "aten::mse_loss",
    lambda s: F.mse_loss(s.x, s.y),
    cpu=Kernel(mse_loss, FLOATS),
    ascend=Kernel(ascend_mse_loss, ASCEND_FLOATS),
)


def nll_loss_forward(
    x: ms.Tensor, target: ms.Tensor, weight: ms.Tensor | None, reduction: int, ignore_index: int
) -> Any:
    if weight is not None or len(x.shape) != 2 or reduction == 0:
        return NotImplemented
    kept = cast(ag.not_equal(target, ignore_index), torch_dtype(x))
    columns = ag.mul(target, cast(kept, torch.int64))
    if int(columns.min()) < 0 or int(columns.max()) >= x.shape[1]:
        return NotImplemented  # torch's own error
    picked = ops.gather_elements(x, 1, columns.view(-1, 1)).view(-1)
    total = ag.sum_ext(kept, None, False, None)
    loss = ag.neg(ag.sum_ext(ag.mul(picked, kept), None, False, None))
    return (ag.RealDiv()(loss, total) if reduction == 1 else loss), total


def ascend_nll_loss_forward(
    x: ms.Tensor, target: ms.Tensor, weight: ms.Tensor | None, reduction: int, ignore_index: int
) -> Any:
    if len(x.shape) != 2:
        return NotImplemented
    weight = mint.ones(x.shape[1], dtype=x.dtype) if weight is None else weight
    return ag.nllloss_impl(x, target, weight, _REDUCTIONS[reduction], ignore_index)


row(
    "aten::nll_loss_forward",
    lambda s: F.nll_loss(s.x, s.i[:, 0].contiguous()),
    cpu=Kernel(nll_loss_forward, (torch.float32, torch.float64)),
    ascend=Kernel(ascend_nll_loss_forward, ASCEND_FLOATS),
    mixed=True,
)


def ascend_nll_loss_backward(
    grad: ms.Tensor,
    x: ms.Tensor,
    target: ms.Tensor,
    weight: ms.Tensor | None,
    reduction: int,
    ignore_index: int,
    total: ms.Tensor,
) -> Any:
    if len(x.shape) != 2:
        return NotImplemented
    weight = mint.ones(x.shape[1], dtype=x.dtype) if weight is None else weight
    return ag.nllloss_grad_impl(x, grad, target, weight, total, _REDUCTIONS[reduction], ignore_index)


def _nll_gradient(s: Inputs) -> torch.Tensor:
    target, total = s.i[:, 0].contiguous(), s.p[0, 0] * 0 + s.x.shape[0]
    return torch.ops.aten.nll_loss_backward(s.p[0, 0], s.x, target, None, 1, -100, total)


row(
    "aten::nll_loss_backward",
    _nll_gradient,
    ascend=Kernel(ascend_nll_loss_backward, ASCEND_FLOATS),
    mixed=True,
)
