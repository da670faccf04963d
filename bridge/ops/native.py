"""Route csrc: our own kernels (mindspeed_ms.kernels.aten, aten_nn) for operators of the table.

They take contiguous tensors of one native dtype, so the functions here only sort out what the kernels do not
take. In-place kernels write the first argument where it lies; the C++ kernel calls them where that is
contiguous.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from mindspeed_ms.kernels import aten, aten_nn, matmul, moving
from mindspeed_ms.ops import schemas
from mindspeed_ms.ops.registry import Lowering

F32 = (torch.float32,)
NATIVE = (torch.float32, torch.bfloat16, torch.float16)
ANY = (*NATIVE, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
Tensor = torch.Tensor
Kernel = Callable[..., Any]

UNARY = ("abs", "exp", "neg", "reciprocal", "relu", "rsqrt", "sigmoid", "sqrt", "tanh")
SUMS = {"aten::add.Tensor": "add", "aten::sub.Tensor": "sub"}
PRODUCTS = {"aten::mul.Tensor": "mul", "aten::div.Tensor": "div"}
COMMUTES = frozenset({"add", "mul"})


def _binary(name: str) -> tuple[Kernel, Kernel]:
    """Out of place and in place: ``(x, other[, alpha])`` with `other` a number or repeating along `x`."""
    new, in_place = getattr(aten, name), getattr(aten, f"{name}_")

    def fits(x: Any, other: Any) -> bool:
        if not isinstance(x, Tensor):
            return False
        return not isinstance(other, Tensor) or aten.broadcast_kind(x, other) is not None

    def call(x: Any, other: Any, alpha: float = 1) -> Any:
        if fits(x, other):
            return new(x, other, alpha)
        # The first one decides the result's dtype.
        same = not isinstance(x, Tensor) or not isinstance(other, Tensor) or x.dtype == other.dtype
        if name in COMMUTES and alpha == 1 and same and fits(other, x):
            return new(other, x)
        return NotImplemented

    def call_in_place(x: Tensor, other: Any, alpha: float = 1) -> Any:
        return in_place(x, other, alpha) if fits(x, other) else NotImplemented

    return call, call_in_place


def _last_dim(kernel: Kernel) -> Kernel:
    """For ``(tensors..., dim, dtype)`` kernels that run over the last dimension and keep the dtype."""

    def call(*args: Any) -> Any:
        *tensors, dim, dtype = args
        x = tensors[-1]
        if x.dim() == 0 or dim not in (-1, x.dim() - 1) or dtype not in (False, x.dtype):
            return NotImplemented
        return kernel(*tensors, dim)

    return call


def _reduction(kernel: Kernel) -> Kernel:
    """For ``(x, dim, keepdim, dtype)``: dimensions at one end, no change of dtype."""

    def call(x: Tensor, dim: Sequence[int] | None, keepdim: bool, dtype: torch.dtype | None) -> Any:
        if dtype not in (None, x.dtype) or aten.reduce_kind(x, dim) is None:
            return NotImplemented
        return kernel(x, dim, keepdim)

    return call


def _whole(kernel: Kernel) -> Kernel:
    def call(x: Tensor, dtype: torch.dtype | None) -> Any:
        return kernel(x) if dtype in (None, x.dtype) else NotImplemented

    return call


def layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Any:
    return aten_nn.native_layer_norm(x, shape, weight, bias, eps) if prod(shape) >= 8 else NotImplemented


def layer_norm_backward(grad: Tensor, x: Tensor, shape: Sequence[int], *rest: Any) -> Any:
    # Rows of a few columns have next to no variance: what is left of their gradient is rounding, magnified.
    return aten_nn.native_layer_norm_backward(grad, x, shape, *rest) if prod(shape) >= 8 else NotImplemented


def _same_shapes(*tensors: Tensor) -> bool:
    return all(t.shape == tensors[0].shape for t in tensors)


def _ternary(kernel: Kernel) -> tuple[Kernel, Kernel]:
    """addcmul and addcdiv as lists of one."""

    def in_place(x: Tensor, y: Tensor, z: Tensor, value: float) -> Any:
        return kernel([x], [y], [z], value) if _same_shapes(x, y, z) else NotImplemented

    def call(x: Tensor, y: Tensor, z: Tensor, value: float) -> Any:
        if not _same_shapes(x, y, z):
            return NotImplemented
        out = aten.clone(x)
        kernel([out], [y], [z], value)
        return out

    return call, in_place


def lerp(start: Tensor, end: Tensor, weight: float) -> Any:
    if not _same_shapes(start, end):
        return NotImplemented
    out = aten.clone(start)
    aten._foreach_lerp_([out], [end], weight)
    return out


def lerp_in_place(start: Tensor, end: Tensor, weight: float) -> Any:
    return aten._foreach_lerp_([start], [end], weight) if _same_shapes(start, end) else NotImplemented


def vector_norm(
    x: Tensor, order: float, dim: Sequence[int] | None, keepdim: bool, dtype: torch.dtype | None
) -> Any:
    if order != 2 or dim or keepdim or dtype not in (None, x.dtype):
        return NotImplemented
    return aten._foreach_norm([x])[0]


def embedding_backward(
    grad: Tensor, indices: Tensor, rows: int, padding_idx: int, scale_by_freq: bool
) -> Any:
    return aten_nn.embedding_dense_backward(grad, indices, rows, padding_idx, scale_by_freq)


def cat(tensors: Sequence[Tensor], dim: int) -> Any:
    return moving.cat(tensors, dim) if moving.joins(tensors, dim) else NotImplemented


def _kernels() -> dict[str, tuple[Kernel, Kernel | None, tuple[torch.dtype, ...]]]:
    """Operator -> kernel, in-place kernel, dtypes."""
    found: dict[str, tuple[Kernel, Kernel | None, tuple[torch.dtype, ...]]] = {
        f"aten::{name}": (getattr(aten, name), getattr(aten, f"{name}_"), NATIVE) for name in UNARY
    }
    found |= {op: (*_binary(name), NATIVE) for op, name in (SUMS | PRODUCTS).items()}
    found |= {
        f"aten::{name}": (getattr(aten_nn, name), None, NATIVE)
        for name in ("gelu_backward", "silu", "silu_backward")
    }
    found |= {
        f"aten::{name}": (_last_dim(getattr(aten_nn, name)), None, NATIVE)
        for name in ("_softmax", "_softmax_backward_data", "_log_softmax", "_log_softmax_backward_data")
    }
    if matmul.available():
        found |= {
            "aten::mm": (matmul.product, None, NATIVE),
            "aten::bmm": (matmul.product, None, NATIVE),
            "aten::addmm": (matmul.add_product, matmul.add_product_, NATIVE),
            "aten::baddbmm": (matmul.add_product, matmul.add_product_, NATIVE),
        }
    return found | {
        "aten::sum.dim_IntList": (_reduction(aten.sum), None, F32),
        "aten::mean.dim": (_reduction(aten.mean), None, F32),
        "aten::sum": (_whole(aten.sum), None, F32),
        "aten::mean": (_whole(aten.mean), None, F32),
        "aten::addcmul": (*_ternary(aten._foreach_addcmul_), F32),
        "aten::addcdiv": (*_ternary(aten._foreach_addcdiv_), F32),
        "aten::lerp.Scalar": (lerp, lerp_in_place, F32),
        "aten::linalg_vector_norm": (vector_norm, None, F32),
        "aten::native_layer_norm": (layer_norm, None, F32),
        "aten::native_layer_norm_backward": (layer_norm_backward, None, F32),
        "aten::embedding_dense_backward": (embedding_backward, None, NATIVE),
        "aten::cat": (cat, None, ANY),
        "aten::zero": (moving.zero, moving.zero_, ANY),
    }


def apply(table: dict[str, Lowering]) -> None:
    """Enters the csrc kernels into the table of lowerings.

    Raises:
        LookupError: torch has no such operator.
    """
    for name, (kernel, in_place, dtypes) in _kernels().items():
        entry = table.get(name)
        if entry is None:
            entry = table[name] = Lowering(name, schemas.overloads(name))
        entry.csrc, entry.csrc_in_place, entry.csrc_dtypes = kernel, in_place, dtypes
        entry.csrc_widens = name in SUMS or name in PRODUCTS
