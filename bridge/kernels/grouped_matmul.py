"""Products of groups of rows with a matrix each: the experts of a mixture (grouped GEMM)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from mindspeed_ms.kernels import matmul
from mindspeed_ms.kernels.backend import counted, implementation
from mindspeed_ms.kernels.dispatch import choose, on_mindspore
from torch.autograd.function import once_differentiable


def grouped_matmul(
    x: torch.Tensor,
    weights: torch.Tensor | Sequence[torch.Tensor],
    counts: Sequence[int],
    *,
    turned: bool = False,
) -> torch.Tensor:
    """(rows, n): `counts[i]` rows of x (rows, k), in order, times weights[i] (k, n), or (n, k) if `turned`.

    weights: one tensor (groups, k, n) or one matrix per group, of x's dtype; fp32, bf16 or fp16, sums in
    fp32. A group without rows is fine, its weights get a gradient of zeros. ValueError for counts that do not
    add up.
    """
    if len(weights) != len(counts) or sum(counts) != x.shape[0] or min(counts, default=0) < 0:
        raise ValueError(
            f"grouped_matmul: {len(weights)} matrices and counts {list(counts)} do not fit {x.shape[0]} rows"
        )
    if not len(weights):
        raise ValueError("grouped_matmul: no groups")
    refusal = None if x.dtype == weights[0].dtype else "rows and matrices have different dtypes"
    if choose("grouped_matmul", x, *weights, refusal=refusal) == "mindspore":
        # The operator takes one tensor of all matrices; Transformer Engine's layers hold them apart.
        matrices = weights if isinstance(weights, torch.Tensor) else torch.stack(tuple(weights))
        ends = torch.tensor(list(itertools.accumulate(counts)), dtype=torch.int64, device=x.device)
        return on_mindspore("grouped_matmul", x, matrices, ends, turned=turned)
    if not _direct(x, weights[0]):
        parts = torch.split(x, list(counts))
        return torch.cat([rows @ (w.t() if turned else w) for rows, w in zip(parts, weights, strict=True)])
    if isinstance(weights, torch.Tensor):
        return _Grouped.apply(x, tuple(counts), turned, True, weights)
    return _Grouped.apply(x, tuple(counts), turned, False, *weights)


def grouped_weight_gradient(x: torch.Tensor, dy: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """(groups, k, n): for each group of rows x_i^T dy_i, of x (rows, k) and dy (rows, n)."""
    out = x.new_empty(len(counts), x.shape[1], dy.shape[1])
    for part, a, b in zip(out, torch.split(x, list(counts)), torch.split(dy, list(counts)), strict=True):
        _multiply(part, a.t(), b)
    return out


def _direct(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return x.dtype == weight.dtype and implementation(x, weight) == "csrc" and matmul.available()


def _multiply(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    if a.shape[1] == 0:
        out.zero_()
    elif out.numel() and not _direct(a, b):
        out.copy_(a @ b)
    elif out.numel():
        matmul.multiply_into(out, a, b)


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, counts, turned, stacked, *weights):
        ctx.save_for_backward(x, *weights)
        ctx.options = (counts, turned, stacked)
        matrices = weights[0] if stacked else weights
        out = x.new_empty(x.shape[0], matrices[0].shape[0 if turned else 1])
        with counted("grouped_matmul", x):
            for part, rows, w in zip(torch.split(out, counts), torch.split(x, counts), matrices, strict=True):
                _multiply(part, rows, w.t() if turned else w)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, *weights = ctx.saved_tensors
        counts, turned, stacked = ctx.options
        matrices = weights[0] if stacked else weights
        rows, grads = torch.split(x, counts), torch.split(dy, counts)
        dx = None
        with counted("grouped_matmul", x):
            if ctx.needs_input_grad[0]:
                dx = torch.empty_like(x, memory_format=torch.contiguous_format)
                for part, grad, w in zip(torch.split(dx, counts), grads, matrices, strict=True):
                    _multiply(part, grad, w if turned else w.t())
            fresh = [
                torch.empty_like(w, memory_format=torch.contiguous_format) if need else None
                for w, need in zip(weights, ctx.needs_input_grad[4:], strict=True)
            ]
            parts = fresh
            if stacked:
                parts = [None] * len(counts) if fresh[0] is None else fresh[0].unbind()
            for part, a, b in zip(parts, rows, grads, strict=True):
                if part is not None:
                    _multiply(part, *((b.t(), a) if turned else (a.t(), b)))
        return dx, None, None, None, *fresh
