"""The kernels' forms on MindSpore, for target Ascend: the table of them, and the call with its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mindspeed_ms import device
from mindspeed_ms.device import mindspore
from mindspeed_ms.kernels import ascend_attention, ascend_linear
from mindspeed_ms.routes import counted, declare
from mindspeed_ms.routes.choice import NATIVE
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Form:
    """A kernel on Ascend."""

    call: Callable[..., Any]
    """On MindSpore tensors."""
    operators: str
    """What of MindSpore it calls."""
    backward: Callable[..., Any] | None = None
    """Its gradient, where MindSpore's own cannot be inferred without a device; else MindSpore's autograd."""


#: Kernel -> its Ascend form. What is not here runs as the composite in torch operators, and says so once.
FORMS: dict[str, Form] = {
    "ring_step": Form(ascend_attention.ring_step, "FlashAttentionScore", ascend_attention.ring_step_backward),
    "ring_merge": Form(ascend_attention.ring_merge, "ring_attention_update"),
    "column_linear": Form(
        ascend_linear.column_linear, "all_gather_matmul", ascend_linear.column_linear_backward
    ),
    "row_linear": Form(ascend_linear.row_linear, "matmul_reduce_scatter", ascend_linear.row_linear_backward),
}


_LENT = object()
"""Stands for an argument that is a tensor."""


for _name in FORMS:
    declare(_name, mindspore=NATIVE)


def on_mindspore(kernel: str, *args: Any, seed: int | None = None, **kwargs: Any) -> Any:
    """The Ascend form of `kernel` on npu tensors, differentiable: its results as npu tensors.

    Tensors among the arguments (not inside lists) are lent to MindSpore, the others are passed as they are.
    `seed`: for MindSpore's generator, from which operators with dropout draw.
    """
    if seed is not None:
        mindspore.module().manual_seed(seed)
    tensors, run = _bound(args, kwargs)
    form = FORMS[kernel]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return (_Recorded if form.backward is None else _Paired).apply(kernel, run, *tensors)
    return _called(kernel, tensors, run, form.call)


def gradient_on_mindspore(kernel: str, *args: Any, **kwargs: Any) -> Any:
    """The gradient of the Ascend form of `kernel`, for a kernel that calls both from a backward of its own.

    Arguments are those of the form's gradient, passed as :func:`on_mindspore` passes them.
    """
    tensors, run = _bound(args, kwargs)
    return _called(kernel, tensors, run, FORMS[kernel].backward)


def _bound(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[torch.Tensor], Callable[..., Any]]:
    """The tensors among the arguments, and what calls a function with others in their places."""
    values = (*args, *kwargs.values())
    # Without the tensors, which are autograd's to keep.
    fixed = [_LENT if isinstance(value, torch.Tensor) else value for value in values]
    count, names = len(args), tuple(kwargs)

    def run(call: Callable[..., Any], lent: list[Any]) -> Any:
        rest = iter(lent)
        now = [next(rest) if value is _LENT else value for value in fixed]
        return call(*now[:count], **dict(zip(names, now[count:], strict=True)))

    return [value for value in values if isinstance(value, torch.Tensor)], run


def _called(
    kernel: str, tensors: list[torch.Tensor], run: Callable[..., Any], call: Callable[..., Any]
) -> Any:
    lent = _lend(tensors)
    with mindspore.alone(), counted(kernel, tensors[0], "mindspore"):
        found = run(call, lent)
    return _adopt(found)


def _lend(tensors: Iterable[torch.Tensor]) -> list[Any]:
    """MindSpore tensors of their own on the memory of these; the device keeps others for every borrower."""
    mindspore.module()
    from mindspore.ops import auto_generate

    lent = [device.to_mindspore(tensor.detach().contiguous()) for tensor in tensors]
    return [auto_generate.view(tensor, tensor.shape) for tensor in lent]


def _adopt(result: Any) -> Any:
    """npu tensors of one MindSpore tensor, of a tuple of them, or of None."""
    if isinstance(result, tuple):
        return tuple(map(_adopt, result))
    return None if result is None else device.from_mindspore(result)


@contextmanager
def _recording() -> Iterator[None]:
    from mindspore.graph.api import _pynative_executor

    before = _pynative_executor.grad_flag()
    _pynative_executor.set_grad_flag(True)
    try:
        yield
    finally:
        _pynative_executor.set_grad_flag(before)


class _Recorded(torch.autograd.Function):
    """A form with the gradient that MindSpore's autograd recorded.

    By MindSpore's engine itself: mindspore.vjp (2.10) loses its record when another call of the same function
    comes between forward and backward, as every layer of a model does.
    """

    @staticmethod
    def forward(ctx, kernel, run, *tensors):
        leaves = _lend(tensors)
        with mindspore.alone(), counted(kernel, tensors[0], "mindspore"), _recording():
            for leaf, wanted in zip(leaves, ctx.needs_input_grad[2:], strict=True):
                if wanted:
                    leaf.requires_grad_()
            results = run(FORMS[kernel].call, leaves)
        ctx.kernel, ctx.leaves = kernel, leaves
        ctx.results = results if isinstance(results, tuple) else (results,)
        ctx.set_materialize_grads(False)
        adopted = _adopt(results)
        many = adopted if isinstance(adopted, tuple) else (adopted,)
        ctx.mark_non_differentiable(*(t for t in many if not t.is_floating_point()))
        return adopted

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        if ctx.results is None:
            raise RuntimeError("the gradient was taken already; keep the graph with retain_graph=True")
        from mindspore import _c_expression

        results = tuple(result for result, grad in zip(ctx.results, grads, strict=True) if grad is not None)
        given = [grad for grad in grads if grad is not None]
        wanted = [need and bool(given) for need in ctx.needs_input_grad[2:]]
        leaves = tuple(leaf for leaf, need in zip(ctx.leaves, wanted, strict=True) if need)
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        found: Any = ()
        if leaves:
            lent = tuple(_lend(given))  # before the place: a strided gradient is copied by the device itself
            with mindspore.alone(), counted(ctx.kernel, given[0], "mindspore"):
                found = _c_expression.run_backward(
                    results, lent, keep, False, leaves, True, accumulate_grad=False
                )
        if not keep:
            ctx.leaves = ctx.results = None
        rest = iter(_adopt(tuple(found)))
        return (None, None, *(next(rest) if need else None for need in wanted))


class _Paired(torch.autograd.Function):
    """A form with a gradient of its own: a function of the form's arguments and the incoming gradient."""

    @staticmethod
    def forward(ctx, kernel, run, *tensors):
        ctx.kernel, ctx.run = kernel, run
        ctx.save_for_backward(*tensors)
        return _called(kernel, list(tensors), run, FORMS[kernel].call)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *lent, incoming = _lend([*ctx.saved_tensors, grad])
        backward = FORMS[ctx.kernel].backward
        with mindspore.alone(), counted(ctx.kernel, grad, "mindspore"):
            found = ctx.run(lambda *a, **k: backward(*a, incoming, **k), lent)
        return (None, None, *_adopt(found))
