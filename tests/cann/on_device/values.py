"""Values and gradients of MindSpore's operators on the simulated device, against torch in float64.

The inputs are rounded to the dtype first, so that what is left is the operator's own error: a rounding of
its result in 16 bits, since it computes in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, mint, ops
from mindspore.mint.nn import functional as mf
from torch.nn import functional as tf

ms.set_device("Ascend", 0)

DTYPES = {"float32": ms.float32, "bfloat16": ms.bfloat16, "float16": ms.float16}
#: Relative and absolute error: a few roundings of the dtype.
TOLERANCES = {"float32": (2e-5, 2e-5), "bfloat16": (2e-2, 2e-2), "float16": (3e-3, 3e-3)}


@dataclass(frozen=True)
class Case:
    """``ours`` and ``reference`` take tensors of ``shapes``; ``low`` shifts the inputs to where they are
    defined."""

    ours: Callable[..., Any]
    reference: Callable[..., torch.Tensor]
    shapes: tuple[tuple[int, ...], ...]
    low: float | None = None
    differentiated: int | None = None  # the first so many inputs; all of them by default
    dtypes: tuple[str, ...] = tuple(DTYPES)


A, B, SQUARE = (4, 6), (6, 5), (5, 5)
INDEX = np.array([2, 0, 3])


def _swiglu(x: torch.Tensor) -> torch.Tensor:
    gate, value = x.chunk(2, -1)
    return tf.silu(gate) * value


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


CASES: dict[str, Case] = {
    "add": Case(lambda a, b: mint.add(a, b, alpha=2), lambda a, b: torch.add(a, b, alpha=2), (A, (6,))),
    "sub": Case(mint.sub, torch.sub, (A, A)),
    "mul": Case(mint.mul, torch.mul, (A, (4, 1))),
    "div": Case(mint.div, torch.div, (A, A), low=1),
    "pow": Case(lambda a: mint.pow(a, 3), lambda a: a**3, (A,)),
    "exp": Case(mint.exp, torch.exp, (A,)),
    "log": Case(mint.log, torch.log, (A,), low=0.5),
    "sqrt": Case(mint.sqrt, torch.sqrt, (A,), low=0.5),
    "rsqrt": Case(mint.rsqrt, torch.rsqrt, (A,), low=0.5),
    "reciprocal": Case(mint.reciprocal, torch.reciprocal, (A,), low=0.5),
    "tanh": Case(mint.tanh, torch.tanh, (A,)),
    "sigmoid": Case(mint.sigmoid, torch.sigmoid, (A,)),
    "erf": Case(mint.erf, torch.erf, (A,)),
    "sin cos": Case(lambda a: mint.sin(a) * mint.cos(a), lambda a: a.sin() * a.cos(), (A,)),
    "abs neg": Case(lambda a: mint.abs(mint.neg(a)), lambda a: a.abs(), (A,)),
    "clamp": Case(lambda a: mint.clamp(a, -0.5, 0.5), lambda a: a.clamp(-0.5, 0.5), (A,)),
    "maximum": Case(mint.maximum, torch.maximum, (A, A)),
    "where": Case(lambda a, b: mint.where(a > 0, a, b), lambda a, b: torch.where(a > 0, a, b), (A, A)),
    "relu": Case(mf.relu, torch.relu, (A,)),
    "gelu": Case(mf.gelu, tf.gelu, (A,)),
    "gelu tanh": Case(
        lambda a: mf.gelu(a, approximate="tanh"), lambda a: tf.gelu(a, approximate="tanh"), (A,)
    ),
    "silu": Case(mf.silu, tf.silu, (A,)),
    "softplus": Case(mf.softplus, tf.softplus, (A,)),
    "swiglu": Case(ops.swiglu, _swiglu, ((4, 8),)),
    "sum": Case(lambda a: mint.sum(a, dim=1), lambda a: a.sum(1), (A,)),
    "sum all": Case(lambda a: mint.sum(a), lambda a: a.sum(), (A,)),
    "mean": Case(lambda a: mint.mean(a, dim=0, keepdim=True), lambda a: a.mean(0, True), (A,)),
    "amax": Case(lambda a: mint.amax(a, 1), lambda a: a.amax(1), (A,)),
    "max of a dimension": Case(lambda a: mint.max(a, 1)[0], lambda a: a.max(1)[0], (A,)),
    "logsumexp": Case(lambda a: mint.logsumexp(a, 1), lambda a: a.logsumexp(1), (A,)),
    "norm": Case(lambda a: mint.norm(a), lambda a: a.norm(), (A,)),
    "cumsum": Case(lambda a: mint.cumsum(a, 1), lambda a: a.cumsum(1), (A,)),
    "var": Case(lambda a: mint.var(a, 1), lambda a: a.var(1), (A,), differentiated=0),
    "matmul": Case(mint.matmul, torch.matmul, (A, B)),
    "matmul of large values": Case(mint.matmul, torch.matmul, (A, B), low=20),
    "mm of views": Case(lambda a, b: mint.matmul(a.t(), b.t()), lambda a, b: a.t() @ b.t(), (B, (4, 6))),
    "bmm": Case(mint.bmm, torch.bmm, ((2, 3, 4), (2, 4, 5))),
    "addmm": Case(mint.addmm, torch.addmm, ((5,), A, B)),
    "linear": Case(mf.linear, tf.linear, (A, (5, 6), (5,))),
    "softmax": Case(lambda a: mf.softmax(a, -1), lambda a: a.softmax(-1), (A,)),
    "log_softmax": Case(lambda a: mf.log_softmax(a, -1), lambda a: a.log_softmax(-1), (A,)),
    "layer_norm": Case(
        lambda a, w, b: mf.layer_norm(a, (6,), w, b),
        lambda a, w, b: tf.layer_norm(a, (6,), w, b),
        (A, (6,), (6,)),
    ),
    "rms_norm": Case(
        lambda a, w: ops.rms_norm(a, w, 1e-5)[0], lambda a, w: tf.rms_norm(a, (6,), w, 1e-5), (A, (6,))
    ),
    "group_norm": Case(
        lambda a: mf.group_norm(a, 2), lambda a: tf.group_norm(a, 2), ((2, 4, 3),), dtypes=("float32",)
    ),
    "rotary": Case(  # MindSpore's gradients of cos and sin are zeros
        ops.rotary_position_embedding,
        _rotated,
        ((2, 3, 2, 64), (1, 3, 1, 64), (1, 3, 1, 64)),
        differentiated=1,
    ),
    "cat": Case(lambda a, b: mint.cat([a, b], 1), lambda a, b: torch.cat([a, b], 1), (A, A)),
    "stack": Case(lambda a, b: mint.stack([a, b]), lambda a, b: torch.stack([a, b]), (A, A)),
    "split": Case(lambda a: mint.split(a, [1, 5], 1)[1], lambda a: a.split([1, 5], 1)[1], (A,)),
    "permute": Case(lambda a: mint.permute(a, (1, 0)) * 2, lambda a: a.t() * 2, (A,)),
    "tril": Case(mint.tril, torch.tril, (SQUARE,)),
    "triu": Case(lambda a: mint.triu(a, 1), lambda a: a.triu(1), (SQUARE,)),
    "index_select": Case(
        lambda a: mint.index_select(a, 0, Tensor(INDEX)),
        lambda a: a.index_select(0, torch.tensor(INDEX)),
        (A,),
    ),
    "gather": Case(
        lambda a: mint.gather(a, 1, Tensor(np.tile(INDEX, (4, 1)))),
        lambda a: a.gather(1, torch.tensor(np.tile(INDEX, (4, 1)))),
        (A,),
    ),
    "scatter_add": Case(
        lambda a, b: mint.scatter_add(a, 1, Tensor(np.tile(INDEX, (4, 1))), b),
        lambda a, b: a.scatter_add(1, torch.tensor(np.tile(INDEX, (4, 1))), b),
        (A, (4, 3)),
    ),
    "index_add": Case(
        lambda a, b: mint.index_add(a, 0, Tensor(INDEX, ms.int32), b),
        lambda a, b: a.index_add(0, torch.tensor(INDEX), b),
        (A, (3, 6)),
    ),
    "embedding": Case(
        lambda w: mf.embedding(Tensor([[1, 3], [3, 0]]), w),
        lambda w: tf.embedding(torch.tensor([[1, 3], [3, 0]]), w),
        (A,),
    ),
    "sort": Case(lambda a: mint.sort(a, dim=-1)[0], lambda a: a.sort(-1)[0], (A,)),
    "topk": Case(lambda a: mint.topk(a, 2)[0], lambda a: a.topk(2)[0], (A,)),
    "masked_fill": Case(lambda a: a.masked_fill(a > 0, -1.0), lambda a: a.masked_fill(a > 0, -1.0), (A,)),
    "cross_entropy": Case(
        lambda a: mf.cross_entropy(a, Tensor([1, 0, 5, 2])),
        lambda a: tf.cross_entropy(a, torch.tensor([1, 0, 5, 2])),
        (A,),
    ),
    "mse": Case(mf.mse_loss, tf.mse_loss, (A, A)),
    "conv2d": Case(
        lambda a, w: mf.conv2d(a, w, padding=1),
        lambda a, w: tf.conv2d(a, w, padding=1),
        ((1, 2, 5, 5), (3, 2, 3, 3)),
    ),
}


def _arrays(case: Case, dtype: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(len(case.shapes))
    values = [torch.randn(shape, generator=generator) for shape in case.shapes]
    if case.low is not None:
        values = [value.abs() + case.low for value in values]
    return [value.to(getattr(torch, dtype)).double() for value in values]


def _close(got: Tensor, want: torch.Tensor, dtype: str) -> None:
    relative, absolute = TOLERANCES[dtype]
    np.testing.assert_allclose(got.float().asnumpy(), want.detach().numpy(), rtol=relative, atol=absolute)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str, dtype: str) -> None:
    case = CASES[name]
    if dtype not in case.dtypes:
        return
    exact = [value.requires_grad_() for value in _arrays(case, dtype)]
    inputs = [Tensor(value.detach().float().numpy()).astype(DTYPES[dtype]) for value in exact]
    want = case.reference(*exact)
    got = case.ours(*inputs)
    assert got.dtype == DTYPES[dtype]
    assert got.shape == tuple(want.shape)
    _close(got, want, dtype)
    wanted = len(exact) if case.differentiated is None else case.differentiated
    if wanted == 0:
        return
    weight = torch.linspace(0.5, 1.5, want.numel(), dtype=torch.float64).reshape(want.shape)
    gradients = torch.autograd.grad((want * weight).sum(), exact[:wanted])
    ours = ms.grad(
        lambda *x: mint.sum(case.ours(*x).float() * Tensor(weight.float().numpy())), tuple(range(wanted))
    )(*inputs)
    for one, other in zip(ours if isinstance(ours, tuple) else (ours,), gradients, strict=True):
        _close(one, other, dtype)
