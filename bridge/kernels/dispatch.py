"""Where a kernel takes its Ascend form: the table of forms, the choice, and the call with its gradient.

On the CPU target the forms run only where MINDSPEED_MS_KERNELS=ascend asks for it: inside MindSpore's device
"meta", which infers shapes and dtypes and computes nothing, so that all results are zeros.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from mindspeed_ms import _runtime, device
from mindspeed_ms.device import mindspore
from mindspeed_ms.kernels import ascend, ascend_attention, ascend_linear, ascend_moe
from mindspeed_ms.kernels.backend import implementation, on_ascend
from torch.autograd.function import once_differentiable

logger = logging.getLogger(__name__)

#: How a form was checked, as no Ascend device was at hand: MindSpore has no inference for some operators, and
#: then their arguments are only bound to its signature.
INFERENCE, SIGNATURE, NO_GRADIENT = "inference", "signature only", "has none"


@dataclass(frozen=True)
class Form:
    """A kernel on Ascend."""

    call: Callable[..., Any]
    """On MindSpore tensors."""
    operators: str
    """What of MindSpore it calls."""
    backward: Callable[..., Any] | None = None
    """Its gradient, where MindSpore's own cannot be inferred without a device; else MindSpore's autograd."""
    forward_checked: str = INFERENCE
    backward_checked: str = INFERENCE
    inferred: Callable[..., Any] | None = None
    """What takes the call's place in a dry run, where MindSpore cannot infer the operator (SIGNATURE)."""


#: Kernel -> its Ascend form. What is not here runs as the composite in torch operators, and says so once.
FORMS: dict[str, Form] = {
    "rms_norm": Form(ascend.rms_norm, "rms_norm, add_rms_norm"),
    "layer_norm": Form(ascend.layer_norm, "LayerNormExt"),
    "bias_activation": Form(ascend.bias_activation, "GeluExt, SiLU, ..."),
    "bias_glu": Form(ascend.bias_glu, "swiglu; for other gates, offsets and clamps the activation's"),
    "bias_dropout_add": Form(ascend.bias_dropout_add, "DropoutExt"),
    "scaled_softmax": Form(ascend.scaled_softmax, "Softmax"),
    "rope": Form(ascend.rope, "rotary_position_embedding"),
    "vocab_parallel_cross_entropy": Form(ascend.vocab_parallel_cross_entropy, "CrossEntropyLoss"),
    "attention": Form(ascend_attention.attention, "speed_fusion_attention"),
    "ring_step": Form(ascend_attention.ring_step, "FlashAttentionScore", ascend_attention.ring_step_backward),
    "ring_merge": Form(ascend_attention.ring_merge, "ring_attention_update", backward_checked=NO_GRADIENT),
    "embedding_grad": Form(ascend.embedding_grad, "EmbeddingDenseBackward", backward_checked=NO_GRADIENT),
    "accumulate_weight_gradient": Form(
        ascend_linear.accumulate_weight_gradient, "InplaceMatmulAdd", backward_checked=NO_GRADIENT
    ),
    "column_linear": Form(
        ascend_linear.column_linear, "all_gather_matmul", ascend_linear.column_linear_backward
    ),
    "row_linear": Form(ascend_linear.row_linear, "matmul_reduce_scatter", ascend_linear.row_linear_backward),
    "topk_router": Form(ascend_moe.topk_router, "TopkExt, GatherD, Scatter"),
    "gather_rows": Form(ascend_moe.gather_rows, "IndexSelect"),
    "combine_rows": Form(ascend_moe.combine_rows, "IndexAddExt"),
    "permute": Form(ascend_moe.permute, "moe_token_permute"),
    "unpermute": Form(
        ascend_moe.unpermute,
        "moe_token_unpermute",
        ascend_moe.unpermute_backward,
        forward_checked=SIGNATURE,
        inferred=ascend_moe.unpermute_inferred,
    ),
    "grouped_matmul": Form(
        ascend_moe.grouped_matmul,
        "grouped_matmul_v4; grouped_matmul_add_ for the weights",
        ascend_moe.grouped_matmul_backward,
    ),
    "adam_step": Form(ascend.adam_step, "AdamW", backward_checked=NO_GRADIENT),
    "l2_norm": Form(ascend.l2_norm, "Norm", backward_checked=NO_GRADIENT),
}


_LENT = object()
"""Stands for an argument that is a tensor."""


@cache
def _log_once(kernel: str, reason: str) -> None:
    logger.warning("%s runs as its composite in torch operators on Ascend: %s", kernel, reason)


def choose(
    kernel: str, *tensors: torch.Tensor | None, refusal: str | Callable[[], str | None] | None = None
) -> str:
    """Which implementation takes this call of `kernel`: "csrc", "mindspore" or "composite".

    As :func:`mindspeed_ms.kernels.implementation`; on Ascend the composite, with one log line, for the reason
    `refusal` (a string, or what computes it when needed).
    """
    chosen = implementation(*tensors)
    if chosen != "mindspore":
        return chosen
    reason = refusal() if callable(refusal) else refusal
    if reason is None:
        return "mindspore"
    _log_once(kernel, reason)
    return "composite"


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
    return _called(kernel, tensors, run, _forward(form))


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


def _forward(form: Form) -> Callable[..., Any]:
    return form.call if form.inferred is None or on_ascend() else form.inferred


def _called(
    kernel: str, tensors: list[torch.Tensor], run: Callable[..., Any], call: Callable[..., Any]
) -> Any:
    lent = _lend(tensors)
    with _place(), _counted(kernel, tensors):
        found = run(call, lent)
    return _adopt(found)


def _counted(kernel: str, tensors: Sequence[torch.Tensor]) -> AbstractContextManager[Any]:
    return _runtime.Timed(f"mindspeed_ms::{kernel}", tensors[0].dtype, on_mindspore=True)


@contextmanager
def _place() -> Iterator[None]:
    """Where MindSpore's operators run: the device, or in a dry run on the CPU target "meta"."""
    with mindspore.alone(), nullcontext() if on_ascend() else mindspore.module().DeviceCtx("meta"):
        yield


def _lend(tensors: Iterable[torch.Tensor]) -> list[Any]:
    """MindSpore tensors of their own on the memory of these; the device keeps others for every borrower.

    In a dry run tensors of "meta", which alone its operators are sure to take.
    """
    mindspore.module()
    from mindspore import mint
    from mindspore.ops import auto_generate

    lent = [device.to_mindspore(_dense(tensor)) for tensor in tensors]
    if on_ascend():
        return [auto_generate.view(tensor, tensor.shape) for tensor in lent]
    with _place():
        return [mint.zeros(tensor.shape, dtype=tensor.dtype) for tensor in lent]


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous()


def _adopt(result: Any) -> Any:
    """npu tensors of one MindSpore tensor, of a tuple of them, or of None."""
    if isinstance(result, tuple):
        return tuple(map(_adopt, result))
    if result is None or on_ascend():
        return None if result is None else device.from_mindspore(result)
    return torch.zeros(result.shape, dtype=_torch_dtypes()[result.dtype], device="npu")


@cache
def _torch_dtypes() -> dict[Any, torch.dtype]:
    ms = mindspore.module()
    return {getattr(ms, name): dtype for name, dtype in mindspore.DTYPES.items()}


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
        with _place(), _counted(kernel, tensors), _recording():
            for leaf, wanted in zip(leaves, ctx.needs_input_grad[2:], strict=True):
                if wanted:
                    leaf.requires_grad_()
            results = run(_forward(FORMS[kernel]), leaves)
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
            with _place(), _counted(ctx.kernel, given):
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
        return _called(kernel, list(tensors), run, _forward(FORMS[kernel]))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *lent, incoming = _lend([*ctx.saved_tensors, grad])
        backward = FORMS[ctx.kernel].backward
        with _place(), _counted(ctx.kernel, [grad]):
            found = ctx.run(lambda *a, **k: backward(*a, incoming, **k), lent)
        return (None, None, *_adopt(found))
