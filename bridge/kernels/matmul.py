"""Matrix products on the oneDNN that MindSpore ships, called directly (csrc/kernels/gemm.cpp).

MindSpore's MatMul runs the same code in float32 and into fresh memory only. Here products are also added to
existing memory, and bfloat16 and float16 are multiplied with float32 sums.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from mindspeed_ms.kernels.backend import DTYPE_CODES, native

Tensor = torch.Tensor


@cache
def library() -> Path | None:
    """MindSpore's libdnnl; None where this MindSpore has none under the name that we know."""
    spec = importlib.util.find_spec("mindspore")
    folders = spec.submodule_search_locations if spec else None
    found = sorted(Path(folders[0]).glob("lib/libdnnl.so.3")) if folders else []
    return found[0] if found else None


def available() -> bool:
    """Whether products can be computed here."""
    return library() is not None


@cache
def _loaded() -> ModuleType:
    kernels = native()
    kernels.gemm_load(str(library()))
    return kernels


def _operand(x: Tensor) -> tuple[Tensor, int, bool]:
    """x (rows, cols) with one unit stride, its leading dimension, and whether it lies transposed."""
    rows, cols = x.shape[-2:]
    if x.stride(-1) == 1 or cols == 1:
        if rows == 1 or x.stride(-2) >= cols:  # not an expanded row, whose stride is 0
            return x, max(x.stride(-2) if rows > 1 else cols, cols), False
    elif (x.stride(-2) == 1 or rows == 1) and x.stride(-1) >= rows:
        return x, x.stride(-1), True
    return x.contiguous(), cols, False


def multiply_into(out: Tensor, a: Tensor, b: Tensor, *, alpha: float = 1.0, beta: float = 0.0) -> None:
    """out = alpha * a @ b + beta * out, in place.

    a: (m, k) or (batch, m, k), b: (k, n) or (batch, k, n), of one dtype, any strides; out: contiguous, (m, n)
    or (batch, m, n), in that dtype or float32. Sums are float32. With beta = 0 what `out` held is ignored.
    Under torch.use_deterministic_algorithms the bits do not depend on the number of threads.
    """
    (a, lda, turn_a), (b, ldb, turn_b) = _operand(a), _operand(b)
    m, k = a.shape[-2:]
    n = b.shape[-1]
    batch, strides = 1, (0, 0, 0)
    if a.dim() == 3:
        batch, strides = a.shape[0], (a.stride(0), b.stride(0), out.stride(0))
    _loaded().gemm(
        a.data_ptr(),
        b.data_ptr(),
        out.data_ptr(),
        m,
        n,
        k,
        lda,
        ldb,
        n,
        turn_a,
        turn_b,
        batch,
        *strides,
        alpha,
        beta,
        torch.are_deterministic_algorithms_enabled(),
        DTYPE_CODES[a.dtype],
        DTYPE_CODES[out.dtype],
    )


def _fits(a: Tensor, b: Tensor, dim: int) -> bool:
    """Whether the shapes make a product of `dim` dimensions; torch says what is wrong with others."""
    return a.dim() == b.dim() == dim and a.shape[-1] == b.shape[-2] and a.shape[:-2] == b.shape[:-2]


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for matrices or stacks of them; NotImplemented for other shapes."""
    if not (_fits(a, b, 2) or _fits(a, b, 3)):
        return NotImplemented
    out = a.new_empty(*a.shape[:-1], b.shape[-1])
    multiply_into(out, a, b)
    return out


def add_product(x: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float) -> Tensor:
    """beta * x + alpha * a @ b with x broadcast (aten::addmm, aten::baddbmm)."""
    if not (_fits(a, b, 2) or _fits(a, b, 3)):
        return NotImplemented
    shape = torch.Size((*a.shape[:-1], b.shape[-1]))
    if beta == 0:  # x is ignored, NaN and all
        out = a.new_empty(shape)
    elif x.dim() <= len(shape) and all(s in (1, t) for s, t in zip(x.shape[::-1], shape[::-1], strict=False)):
        out = a.new_empty(shape).copy_(x)
    else:
        return NotImplemented
    multiply_into(out, a, b, alpha=alpha, beta=beta)
    return out


def add_product_(x: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float) -> Tensor:
    """The same in place, for contiguous x of the product's shape: the product is added where x lies."""
    if not (_fits(a, b, 2) or _fits(a, b, 3)) or x.shape != (*a.shape[:-1], b.shape[-1]):
        return NotImplemented
    multiply_into(x, a, b, alpha=alpha, beta=beta)
    return x
