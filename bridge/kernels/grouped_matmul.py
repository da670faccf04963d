"""Products of groups of rows with a matrix each: the experts of a mixture (grouped GEMM)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from mindspeed_ms import _runtime
from mindspeed_ms.kernels import matmul
from mindspeed_ms.kernels.operator import Gradient, Operator, fake_like
from mindspeed_ms.routes import implementation

Tensor = torch.Tensor


def grouped_matmul(
    x: Tensor,
    weights: Tensor | Sequence[Tensor],
    counts: Sequence[int],
    *,
    turned: bool = False,
) -> Tensor:
    """(rows, n): `counts[i]` rows of x (rows, k), in order, times weights[i] (k, n), or (n, k) if `turned`.

    weights: one tensor (groups, k, n) or one matrix per group, of x's dtype; fp32, bf16 or fp16, sums in
    fp32. A group without rows is fine, its weights get a gradient of zeros. ValueError for counts that do not
    add up and for matrices that do not fit.
    """
    stacked = isinstance(weights, Tensor)
    return _GROUPED_MATMUL(x, [weights] if stacked else list(weights), list(counts), turned)


def _check(x: Tensor, weights: list[Tensor], counts: list[int], turned: bool) -> None:
    stacked = len(weights) == 1 and weights[0].dim() == 3
    matrices = weights[0].shape[0] if stacked else len(weights)
    if not counts or matrices != len(counts) or x.dim() != 2 or sum(counts) != x.shape[0] or min(counts) < 0:
        raise ValueError(
            f"grouped_matmul: {matrices} matrices and counts {list(counts)} do not fit x {tuple(x.shape)}"
        )
    alike = all(w.shape == weights[0].shape for w in weights) and (stacked or weights[0].dim() == 2)
    if not alike or weights[0].shape[-1 if turned else -2] != x.shape[1]:
        kind = "turned matrices" if turned else "matrices"
        shapes = [tuple(w.shape) for w in weights]
        raise ValueError(f"grouped_matmul: {kind} {shapes} do not fit x {tuple(x.shape)}")


def grouped_weight_gradient(x: Tensor, dy: Tensor, counts: Sequence[int]) -> Tensor:
    """(groups, k, n): for each group of rows x_i^T dy_i, of x (rows, k) and dy (rows, n)."""
    out = x.new_empty(len(counts), x.shape[1], dy.shape[1])
    for part, a, b in zip(out, torch.split(x, list(counts)), torch.split(dy, list(counts)), strict=True):
        _multiply(part, a.t(), b)
    return out


def _direct(x: Tensor, weight: Tensor) -> bool:
    return x.dtype == weight.dtype and implementation(x, weight) == "csrc" and matmul.available()


def _multiply(out: Tensor, a: Tensor, b: Tensor) -> None:
    if a.shape[1] == 0:
        out.zero_()
    elif out.numel() and not _direct(a, b):
        out.copy_(a @ b)
    elif out.numel():
        matmul.multiply_into(out, a, b)


# ---- forms; `weights` are one tensor of all matrices, or one matrix for each group


def _matrices(weights: list[Tensor]) -> Sequence[Tensor]:
    return weights[0].unbind() if weights[0].dim() == 3 else weights


def _product(x: Tensor, weights: list[Tensor], counts: list[int], turned: bool) -> Tensor:
    out = _fake(x, weights, counts, turned)
    parts = zip(torch.split(out, counts), torch.split(x, counts), _matrices(weights), strict=True)
    for part, rows, w in parts:
        _multiply(part, rows, w.t() if turned else w)
    return out


def _gradients(
    dy: Tensor, x: Tensor, weights: list[Tensor], counts: list[int], turned: bool, wanted: list[bool]
) -> tuple[Tensor | None, list[Tensor]]:
    dx, dweights = _fake_backward(dy, x, weights, counts, turned, wanted)
    rows, grads = torch.split(x, counts), torch.split(dy, counts)
    if dx is not None:
        for part, grad, w in zip(torch.split(dx, counts), grads, _matrices(weights), strict=True):
            _multiply(part, grad, w if turned else w.t())
    for part, a, b in zip(_matrices(dweights) if dweights else (), rows, grads, strict=bool(dweights)):
        _multiply(part, *((b.t(), a) if turned else (a.t(), b)))
    return dx, dweights


def _mindspore(x: Any, weights: list[Any], counts: list[int], turned: bool) -> Any:
    """grouped_matmul_v4, whose groups end at given rows."""
    return _grouped(x, _stacked(weights), counts, turned)


def _stacked(weights: list[Any]) -> Any:
    """The operator takes one tensor of all matrices; Transformer Engine's layers hold them apart."""
    from mindspore import mint

    return weights[0] if weights[0].ndim == 3 else mint.stack(weights)


def _grouped(x: Any, matrices: Any, counts: list[int], turned: bool) -> Any:
    from mindspore.ops import auto_generate

    matrices = matrices.swapaxes(1, 2) if turned else matrices
    options = {"group_list": _ends(counts), "split_item": 3, "group_type": 0}
    return auto_generate.grouped_matmul_v4([x], [matrices], **options)[0]


def _ends(counts: list[int]) -> Any:
    ends = torch.tensor(list(itertools.accumulate(counts)))
    return _runtime.to_mindspore(ends.to("npu"))


def _mindspore_backward(
    dy: Any, x: Any, weights: list[Any], counts: list[int], turned: bool, wanted: list[bool]
) -> tuple[Any, list[Any]]:
    """Another grouped product for x; grouped_matmul_v4 over rows (group type 2) for the weights."""
    from mindspore import mint
    from mindspore.ops import auto_generate

    dx = _grouped(dy, _stacked(weights), counts, not turned) if wanted[0] else None
    if not wanted[1]:
        return dx, []
    a, b = (dy, x) if turned else (x, dy)
    options = {"group_list": _ends(counts), "split_item": 3, "group_type": 2}
    dweights = auto_generate.grouped_matmul_v4([mint.transpose(a, 0, 1)], [b], **options)[0]
    return dx, [dweights] if weights[0].ndim == 3 else [dweights[i] for i in range(len(counts))]


def _refusal(x: Tensor, weights: list[Tensor], *_: Any) -> str | None:
    if x.dtype != weights[0].dtype:
        return "rows and matrices have different dtypes"
    return "the operator's gradient takes 16-bit types" if x.dtype == torch.float32 else None


def _refusal_backward(dy: Tensor, x: Tensor, weights: list[Tensor], *_: Any) -> str | None:
    # CANN knows a transposed matrix by its strides, and those of one row or column say nothing.
    if 1 in (*dy.shape, *x.shape):
        return "the operator's gradient takes more than one row and one column"
    return _refusal(x, weights)


# ---- operators


def _fake(x: Tensor, weights: list[Tensor], counts: list[int], turned: bool) -> Tensor:
    return x.new_empty(x.shape[0], weights[0].shape[-2 if turned else -1])


def _fake_backward(
    dy: Tensor, x: Tensor, weights: list[Tensor], counts: list[int], turned: bool, wanted: list[bool]
) -> tuple[Tensor | None, list[Tensor]]:
    return fake_like(x) if wanted[0] else None, [fake_like(w) for w in weights] if wanted[1] else []


_BACKWARD = Operator(
    "grouped_matmul_backward(Tensor dy, Tensor x, Tensor[] weights, SymInt[] counts, bool turned, "
    "bool[] wanted) -> (Tensor, Tensor[])",
    decides=("x", "weights"),
    fake=_fake_backward,
    composite=_gradients,
    csrc=_gradients,
    mindspore=_mindspore_backward,
    refusal=_refusal_backward,
)


def _save(ctx: Any, args: tuple[Any, ...], y: Tensor) -> None:
    x, weights, *ctx.options = args
    ctx.save_for_backward(x, *weights)


def _gradient(ctx: Any, dy: Tensor | None) -> tuple[Any, ...]:
    x, *weights = ctx.saved_tensors
    want_x, *want_weights = ctx.needs_input_grad[: 1 + len(weights)]
    if dy is None:
        return (None,) * 4
    dx, dweights = _BACKWARD(dy, x, weights, *ctx.options, [want_x, any(want_weights)])
    return dx, dweights, None, None


_GROUPED_MATMUL = Operator(
    "grouped_matmul(Tensor x, Tensor[] weights, SymInt[] counts, bool turned) -> Tensor",
    decides=("x", "weights"),
    fake=_fake,
    composite=_product,
    csrc=_product,
    mindspore=_mindspore,
    refusal=_refusal,
    check=_check,
    gradient=Gradient(_save, _gradient),
    lower=True,
)
