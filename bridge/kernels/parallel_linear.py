"""Linear layers between which a tensor-parallel group shares the rows of a sequence.

On Ascend product and collective are one operator, in both directions. MindSpore takes one group for such
operators in a model: the first that comes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from mindspeed_ms.comm import mindspore_group
from mindspeed_ms.kernels.dispatch import gradient_on_mindspore, on_mindspore
from mindspeed_ms.routes import choose, on_ascend
from torch.autograd.function import once_differentiable

Tensor = torch.Tensor
WeightGradient = Callable[[Tensor, Tensor], Tensor | None]
"""(gradient of the outputs (rows, out), inputs (rows, in)) -> gradient of the weight, or None if it is kept
elsewhere."""

GROUP_SIZES = (2, 4, 8)
SUMMED = range(256, 65535)
"""Lengths of the sums of a product that the operators take."""

_group: str | None = None


def column_linear(
    x: Tensor, weight: Tensor, group: dist.ProcessGroup, weight_gradient: WeightGradient | None = None
) -> Tensor:
    """All ranks' rows @ weight^T: (ranks * s, ..., out) of x (s, ..., in) and weight (out, in).

    x: this rank's rows, weight: its share of the outputs. A collective call, also in backward, where the rows
    are gathered again. `weight_gradient` makes the gradient of weight, by default the product.
    """
    return LinearWithGatheredRows.apply(x, weight, group, weight_gradient or product)


def row_linear(
    x: Tensor, weight: Tensor, group: dist.ProcessGroup, weight_gradient: WeightGradient | None = None
) -> Tensor:
    """This rank's rows (s / ranks, ..., out) of the sum of all ranks' x @ weight^T, x (s, ..., in).

    x and weight (out, in): this rank's share of the inputs. Else as :func:`column_linear`.
    """
    return LinearWithScatteredRows.apply(x, weight, group, weight_gradient or product)


def product(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient (out, in) of a weight from those of its outputs (rows, out) and its inputs (rows, in)."""
    return grad.t() @ x


def takes_fused(kernel: str, x: Tensor, weight: Tensor, group: dist.ProcessGroup) -> bool:
    """Whether an operator of Ascend computes this call of "column_linear" or "row_linear"; says why not once.

    Who has a way of its own, with collectives beside the products, asks first.
    """
    return choose(kernel, x, weight, refusal=lambda: _unfit(kernel, x, weight, group)) == "mindspore"


def _unfit(kernel: str, x: Tensor, weight: Tensor, group: dist.ProcessGroup) -> str | None:
    rows = x.shape[:-1].numel()
    reasons = (
        (x.dtype != weight.dtype, "inputs and weight have different dtypes"),
        (x.dtype == torch.float32, "the operator takes 16-bit types"),
        (group.size() not in GROUP_SIZES, f"the operator takes groups of {GROUP_SIZES} ranks"),
        (
            not all(side in SUMMED for side in weight.shape),
            f"the operator takes {SUMMED.start} to {SUMMED.stop - 1} inputs and outputs",
        ),
        (not rows, "there is nothing to compute"),
        (kernel == "row_linear" and x.shape[0] % group.size(), "the ranks cannot share the rows"),
    )
    return next((reason for refused, reason in reasons if refused), None) or _without_group(group)


def _without_group(group: dist.ProcessGroup) -> str | None:
    """Why MindSpore has no group for the operators, or None."""
    name = _name(group)
    if name is None:
        return "MindSpore has no such group"
    if _group not in (None, name):
        return f"MindSpore takes one group for it in a model, and that is {_group}"
    return None


def _name(group: dist.ProcessGroup) -> str | None:
    """MindSpore's name of a group that exists there; in a dry run, which sends nothing, of any known one."""
    try:
        known = mindspore_group(group)
    except ValueError:  # torch has destroyed it, or it is another package's
        return None
    return known.name if known.created or not on_ascend() else None


def _fused(group: dist.ProcessGroup) -> tuple[str, int]:
    """Name and size of the group, from now on the one of these operators."""
    global _group
    _group = _name(group)
    return _group, group.size()


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _gather(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    gathered = rows.new_empty(group.size() * rows.shape[0], *rows.shape[1:])
    dist.all_gather_into_tensor(gathered, rows.contiguous(), group=group)
    return gathered


def _scatter(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    mine = rows.new_empty(rows.shape[0] // group.size(), *rows.shape[1:])
    dist.reduce_scatter_tensor(mine, rows.contiguous(), group=group)
    return mine


class LinearWithGatheredRows(torch.autograd.Function):
    """Keeps no result, as Megatron's own: the adapter of the cross entropy knows them by the first words of
    their names."""

    @staticmethod
    def forward(ctx, x, weight, group, weight_gradient):
        ctx.fused = takes_fused("column_linear", x, weight, group)
        ctx.save_for_backward(x, weight)
        ctx.group, ctx.weight_gradient = group, weight_gradient
        if ctx.fused:
            y = on_mindspore("column_linear", _flat(x), weight, *_fused(group))
        else:
            y = _flat(_gather(x, group)) @ weight.t()
        return y.view(group.size() * x.shape[0], *x.shape[1:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        dx = dweight = None
        # Before the operator, not beside it: both use the group's one channel.
        gathered = _gather(x, ctx.group) if ctx.needs_input_grad[1] else None
        if ctx.needs_input_grad[0]:
            if ctx.fused:
                dx = gradient_on_mindspore("column_linear", _flat(grad), weight, *_fused(ctx.group))
            else:
                dx = _scatter(_flat(grad) @ weight, ctx.group)
            dx = dx.view(x.shape)
        if gathered is not None:
            dweight = ctx.weight_gradient(_flat(grad), _flat(gathered))
        return dx, dweight, None, None


class LinearWithScatteredRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, group, weight_gradient):
        ctx.fused = takes_fused("row_linear", x, weight, group)
        ctx.save_for_backward(x, weight)
        ctx.group, ctx.weight_gradient = group, weight_gradient
        if ctx.fused:
            y = on_mindspore("row_linear", _flat(x), weight, *_fused(group))
        else:
            y = _scatter(_flat(x) @ weight.t(), group)
        return y.view(x.shape[0] // group.size(), *x.shape[1:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        if ctx.fused:
            dx, gathered = gradient_on_mindspore("row_linear", _flat(grad), weight, *_fused(ctx.group))
        else:
            gathered = _flat(_gather(grad, ctx.group))
            dx = gathered @ weight
        dweight = ctx.weight_gradient(gathered, _flat(x)) if ctx.needs_input_grad[1] else None
        return dx.view(x.shape), dweight, None, None
