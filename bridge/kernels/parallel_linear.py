"""Linear layers between which a tensor-parallel group shares the rows of a sequence.

On Ascend product and collective are one operator, in both directions. MindSpore takes one group for such
operators in a model: the first that comes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from mindspeed_ms.comm import groups
from mindspeed_ms.comm.names import group_named
from mindspeed_ms.kernels.operator import Operator
from mindspeed_ms.routes import choose
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
    return _Column.apply(x, weight, group, weight_gradient or product)


def row_linear(
    x: Tensor, weight: Tensor, group: dist.ProcessGroup, weight_gradient: WeightGradient | None = None
) -> Tensor:
    """This rank's rows (s / ranks, ..., out) of the sum of all ranks' x @ weight^T, x (s, ..., in).

    x and weight (out, in): this rank's share of the inputs. Else as :func:`column_linear`.
    """
    return _Row.apply(x, weight, group, weight_gradient or product)


def product(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient (out, in) of a weight from those of its outputs (rows, out) and its inputs (rows, in)."""
    return grad.t() @ x


def takes_fused(kernel: str, x: Tensor, weight: Tensor, group: dist.ProcessGroup) -> bool:
    """Whether an operator of Ascend computes this call of "column_linear" or "row_linear"; says why not once.

    Who has a way of its own, with collectives beside the products, asks first.
    """
    return choose(kernel, x, weight, refusal=lambda: _unfit(kernel, x, weight, group))[0] == "mindspore"


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
        (kernel == "row_linear" and rows % group.size(), "the ranks cannot share the rows"),
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
    """MindSpore's name of a group that exists there."""
    try:
        known = groups.mindspore_group(group)
    except ValueError:  # torch has destroyed it, or it is another package's
        return None
    return known.name if known.created else None


def _fused(name: str) -> tuple[str | None, int]:
    """MindSpore's name and the size of the group, from now on the one of these operators."""
    global _group
    group = group_named(name)
    _group = _name(group)
    return _group, group.size()


@groups.at_release
def _forget_group() -> None:
    """The operators may take another group when MindSpore has destroyed all."""
    global _group
    _group = None


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


# ---- forms, on matrices: x (rows, in), weight (out, in)


def _column_composite(x: Tensor, weight: Tensor, group: str) -> Tensor:
    return _gather(x, group_named(group)) @ weight.t()


def _column_backward_composite(grad: Tensor, weight: Tensor, group: str) -> Tensor:
    return _scatter(grad @ weight, group_named(group))


def _row_composite(x: Tensor, weight: Tensor, group: str) -> Tensor:
    return _scatter(x @ weight.t(), group_named(group))


def _row_backward_composite(grad: Tensor, weight: Tensor, group: str) -> tuple[Tensor, Tensor]:
    gathered = _gather(grad, group_named(group))
    return gathered @ weight, gathered


def _column_mindspore(x: Any, weight: Any, group: str) -> Any:
    """ops.all_gather_matmul. The gathered x is not kept: memory for it is what sequence parallelism saves."""
    from mindspore import ops

    return ops.all_gather_matmul(x, weight, *_fused(group), gather_output=False, trans_x2=True)[0]


def _column_backward_mindspore(grad: Any, weight: Any, group: str) -> Any:
    """ops.matmul_reduce_scatter: MindSpore 2.10's operators have no gradient; each is the other's."""
    from mindspore import ops

    return ops.matmul_reduce_scatter(grad, weight, *_fused(group))


def _row_mindspore(x: Any, weight: Any, group: str) -> Any:
    from mindspore import ops

    return ops.matmul_reduce_scatter(x, weight, *_fused(group), trans_x2=True)


def _row_backward_mindspore(grad: Any, weight: Any, group: str) -> tuple[Any, Any]:
    """The gradient of x, and gathered grad for the weight's gradient."""
    from mindspore import ops

    dx, gathered = ops.all_gather_matmul(grad, weight, *_fused(group), gather_output=True)
    return dx, gathered


# ---- operators, without gradients of their own: the functions below are what is differentiated


def _ranks(group: str) -> int:
    return group_named(group).size()


def _refusal(kernel: str, x: Tensor, weight: Tensor, group: str) -> str | None:
    return _unfit(kernel, x, weight, group_named(group))


def _declared(name: str, results: str, fake: Any, composite: Any, mindspore: Any, *, of: str) -> Operator:
    """`of`: the kernel whose limits are this one's."""
    return Operator(
        f"{name}(Tensor x, Tensor weight, str group) -> {results}",
        decides=("x", "weight"),
        fake=fake,
        composite=composite,
        mindspore=mindspore,
        refusal=partial(_refusal, of),
    )


_COLUMN = _declared(
    "column_linear",
    "Tensor",
    lambda x, weight, group: x.new_empty(x.shape[0] * _ranks(group), weight.shape[0]),
    _column_composite,
    _column_mindspore,
    of="column_linear",
)
_COLUMN_BACKWARD = _declared(
    "column_linear_backward",
    "Tensor",
    lambda grad, weight, group: grad.new_empty(grad.shape[0] // _ranks(group), weight.shape[1]),
    _column_backward_composite,
    _column_backward_mindspore,
    of="column_linear",
)
_ROW = _declared(
    "row_linear",
    "Tensor",
    lambda x, weight, group: x.new_empty(x.shape[0] // _ranks(group), weight.shape[0]),
    _row_composite,
    _row_mindspore,
    of="row_linear",
)
_ROW_BACKWARD = _declared(
    "row_linear_backward",
    "(Tensor, Tensor)",
    lambda grad, weight, group: (
        grad.new_empty(grad.shape[0] * _ranks(group), weight.shape[1]),
        grad.new_empty(grad.shape[0] * _ranks(group), grad.shape[1]),
    ),
    _row_backward_composite,
    _row_backward_mindspore,
    of="column_linear",
)


class _Column(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, group: dist.ProcessGroup, weight_gradient: WeightGradient
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.group, ctx.weight_gradient = group, weight_gradient
        y = _COLUMN(_flat(x), weight, group.group_name)
        return y.view(group.size() * x.shape[0], *x.shape[1:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        dx = dweight = None
        # Before the operator, not beside it: both use the group's one channel.
        gathered = _gather(x, ctx.group) if ctx.needs_input_grad[1] else None
        if ctx.needs_input_grad[0]:
            dx = _COLUMN_BACKWARD(_flat(grad), weight, ctx.group.group_name).view(x.shape)
        if gathered is not None:
            dweight = ctx.weight_gradient(_flat(grad), _flat(gathered))
        return dx, dweight, None, None


class _Row(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, group: dist.ProcessGroup, weight_gradient: WeightGradient
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.group, ctx.weight_gradient = group, weight_gradient
        y = _ROW(_flat(x), weight, group.group_name)
        return y.view(x.shape[0] // group.size(), *x.shape[1:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        dx, gathered = _ROW_BACKWARD(_flat(grad), weight, ctx.group.group_name)
        dweight = ctx.weight_gradient(gathered, _flat(x)) if ctx.needs_input_grad[1] else None
        return dx.view(x.shape), dweight, None, None
