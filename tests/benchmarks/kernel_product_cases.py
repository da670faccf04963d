"""The kernels of tests/benchmarks/kernels.py that are matrix products, or choose their rows.

They are bound by arithmetic, on both sides mostly oneDNN's: shown without a mark.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from mindspeed_ms import kernels
from mindspeed_ms.kernels.weight_gradient import accumulate_weight_gradient

from tests.benchmarks.kernel_cases import Case, Size, Tensor, random

EXPERTS = 8


def router(size: Size) -> Case:
    """2 of 64 experts by the softmax over the chosen; torch as Megatron without fusions."""
    x = random(size, size.tokens, 64)

    def theirs(x: Tensor) -> Tensor:
        scores, chosen = torch.topk(x, 2, dim=1)
        probs = torch.softmax(scores, dim=-1, dtype=torch.float32).type_as(x)
        return torch.zeros_like(x).scatter(1, chosen, probs)

    cost = 5 * x.numel() * size.item
    return Case([x], lambda x: kernels.topk_router(x, 2)[0], theirs, cost, kind="product")


def grouped_gemm(size: Size) -> Case:
    """The first layer of 8 experts, an eighth as wide as a dense one, with equal shares of the rows."""
    width = size.hidden // 2
    x, w = random(size, size.tokens, size.hidden), random(size, EXPERTS, size.hidden, width, scale=0.02)
    counts = [size.tokens // EXPERTS] * EXPERTS

    def theirs(x: Tensor, w: Tensor) -> Tensor:
        return torch.cat([rows @ matrix for rows, matrix in zip(x.split(counts), w, strict=True)])

    moved = 2 * (x.numel() + w.numel()) + 2 * size.tokens * width
    return Case(
        [x, w], lambda x, w: kernels.grouped_matmul(x, w, counts), theirs, moved * size.item, kind="product"
    )


def weight_gradient(size: Size) -> Case:
    """main_grad += dy^T x in float32, the step after every linear layer of Megatron."""
    x, dy = random(size, size.tokens, size.hidden), random(size, size.tokens, size.hidden)
    ours, theirs = (torch.zeros(size.hidden, size.hidden, device=device) for device in ("npu", "cpu"))

    def add(x: Tensor, dy: Tensor) -> Tensor:
        if size.dtype == torch.float32:
            return theirs.addmm_(dy.t(), x)
        return theirs.add_(dy.t() @ x)  # addmm_ takes the buffer's dtype only

    return Case(
        [x, dy],
        lambda x, dy: accumulate_weight_gradient(x, dy, ours),
        add,
        2 * x.numel() * size.item + 8 * ours.numel(),
        kind="product",
        differentiate=False,
    )


def linear_cross_entropy(size: Size) -> Case:
    """The loss of a quarter of the tokens over a quarter of the vocabulary, without keeping the logits."""
    rows, vocabulary = size.tokens // 4, 8000
    x, w = random(size, rows, size.hidden), random(size, vocabulary, size.hidden, scale=0.02)
    target = torch.randint(vocabulary, (rows,))
    npu_target = target.to("npu")
    return Case(
        [x, w],
        lambda x, w: kernels.linear_cross_entropy(x, w, npu_target),
        lambda x, w: F.cross_entropy((x @ w.t()).float(), target, reduction="none"),
        2 * (x.numel() + w.numel()) * size.item,
        kind="product",
    )


def newton_schulz(size: Size) -> Case:
    """Muon's five steps, in bfloat16, on one attention head group's matrix (hidden / 4, hidden)."""
    x = random(size, size.hidden // 4, size.hidden)

    def theirs(x: Tensor) -> Tensor:
        y = x.bfloat16()
        y = y / (y.norm() + 1e-7)
        for _ in range(5):
            a = y @ y.T
            y = 3.4445 * y + (-4.7750 * a + 2.0315 * a @ a) @ y
        return y.to(x.dtype)

    return Case(
        [x], kernels.newton_schulz, theirs, 2 * x.numel() * size.item, kind="product", differentiate=False
    )


PRODUCTS: dict[str, Callable[[Size], Case]] = {
    f.__name__: f for f in (router, grouped_gemm, weight_gradient, linear_cross_entropy, newton_schulz)
}
