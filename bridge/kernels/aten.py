"""Plain ATen operations on the native kernels: the device's `csrc` route calls them by their aten names.

Every function takes contiguous tensors (npu or CPU, fp32, bf16 or fp16 unless said otherwise; `clone`
takes any strides), returns new contiguous ones or its first argument (names ending in "_"), and records
no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from mindspeed_ms._native.kernels import BINARY, BROADCASTS, UNARY
from mindspeed_ms.kernels.backend import DTYPE_CODES, dtype_code, native, pointer

Tensor = torch.Tensor
Tensors = Sequence[torch.Tensor]
_ONE_ROW, _ONE_PER_ROW = BROADCASTS["one_row"], BROADCASTS["one_per_row"]


# ---- elementwise
# -------------------------------------------------------------------------------------------


def _unary(op: int, xs: Tensors, ys: Tensors) -> Tensors:
    for (dtype, out_dtype), group in _by_dtype(xs, ys):
        native().unary(
            op,
            [xs[i].data_ptr() for i in group],
            [ys[i].data_ptr() for i in group],
            [xs[i].numel() for i in group],
            DTYPE_CODES[dtype],
            DTYPE_CODES[out_dtype],
        )
    return ys


def _binary(op: int, lefts: Tensors, rights: Tensors, ys: Tensors, alpha: float) -> Tensors:
    lists = (lefts, rights) if len(rights) else (lefts,)
    for dtypes, group in _by_dtype(*lists):
        native().binary(
            op=op,
            lefts=[lefts[i].data_ptr() for i in group],
            rights=[rights[i].data_ptr() for i in group] if len(rights) else [],
            ys=[ys[i].data_ptr() for i in group],
            sizes=[lefts[i].numel() for i in group],
            alpha=alpha,
            dtype=DTYPE_CODES[dtypes[0]],
            right_dtype=DTYPE_CODES[dtypes[-1]],
        )
    return ys


def _by_dtype(*lists: Tensors) -> list[tuple[tuple[torch.dtype, ...], list[int]]]:
    groups: dict[tuple[torch.dtype, ...], list[int]] = {}
    for i, row in enumerate(zip(*lists, strict=True)):
        for other in row[1:]:
            if other.shape != row[0].shape:
                raise ValueError(f"tensors of shapes {tuple(row[0].shape)} and {tuple(other.shape)}")
        groups.setdefault(tuple(x.dtype for x in row), []).append(i)
    return list(groups.items())


def _make_unary(op: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    def new(x: Tensor) -> Tensor:
        return _unary(op, [x], [torch.empty_like(x)])[0]

    def in_place(x: Tensor) -> Tensor:
        return _unary(op, [x], [x])[0]

    return new, in_place


sqrt, sqrt_ = _make_unary(UNARY["sqrt"])
rsqrt, rsqrt_ = _make_unary(UNARY["rsqrt"])
exp, exp_ = _make_unary(UNARY["exp"])
tanh, tanh_ = _make_unary(UNARY["tanh"])
sigmoid, sigmoid_ = _make_unary(UNARY["sigmoid"])
neg, neg_ = _make_unary(UNARY["neg"])
abs, abs_ = _make_unary(UNARY["abs"])
reciprocal, reciprocal_ = _make_unary(UNARY["reciprocal"])
square, square_ = _make_unary(UNARY["square"])
relu, relu_ = _make_unary(UNARY["relu"])
erf, erf_ = _make_unary(UNARY["erf"])


def _combine(op: int, x: Tensor, other: Tensor | float, alpha: float, y: Tensor) -> Tensor:
    """y = op(x, alpha * other); other is a number, of x's shape, or repeats as broadcast_kind says."""
    if not isinstance(other, torch.Tensor):
        return _binary(op, [x], [], [y], alpha * other)[0]
    if other.shape == x.shape:
        return _binary(op, [x], [other], [y], alpha)[0]
    kind = broadcast_kind(x, other)
    if kind is None:
        raise ValueError(
            f"other {tuple(other.shape)} repeats neither along rows nor columns of {tuple(x.shape)}"
        )
    many, few = x.numel() // max(other.numel(), 1), other.numel()
    rows, cols = (many, few) if kind == _ONE_ROW else (few, many)
    native().binary_broadcast(
        op=op,
        left=pointer(x),
        right=pointer(other),
        y=pointer(y),
        rows=rows,
        cols=cols,
        kind=kind,
        alpha=alpha,
        dtype=dtype_code(x),
        right_dtype=dtype_code(other),
    )
    return y


def broadcast_kind(x: Tensor, other: Tensor) -> int | None:
    """How `other` repeats over x, a code of BROADCASTS: as one block, or one value per run of x; or None."""
    shape = (1,) * (x.dim() - other.dim()) + tuple(other.shape)
    if len(shape) != x.dim():
        return None
    same = [a == b for a, b in zip(shape, x.shape, strict=True)]
    first = next((d for d, s in enumerate(shape) if s != 1), len(shape))
    if all(same[first:]):
        return _ONE_ROW
    last = next((d for d in reversed(range(len(shape))) if shape[d] != 1), -1)
    if all(same[: last + 1]) and all(s == 1 for s in shape[last + 1 :]):
        return _ONE_PER_ROW
    return None


def _make_binary(op: int) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    def new(x: Tensor, other: Tensor | float, alpha: float = 1.0) -> Tensor:
        return _combine(op, x, other, alpha, torch.empty_like(x))

    def in_place(x: Tensor, other: Tensor | float, alpha: float = 1.0) -> Tensor:
        return _combine(op, x, other, alpha, x)

    return new, in_place


# The first operand decides the result's dtype; the second has the same or, beside fp32, a narrower one.
add, add_ = _make_binary(BINARY["add"])
sub, sub_ = _make_binary(BINARY["sub"])
mul, mul_ = _make_binary(BINARY["mul"])
div, div_ = _make_binary(BINARY["div"])
maximum, _ = _make_binary(BINARY["maximum"])
minimum, _ = _make_binary(BINARY["minimum"])


def to_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x converted between fp32, bf16 and fp16 (aten::_to_copy), round to nearest even."""
    return _unary(UNARY["copy"], [x], [torch.empty(x.shape, dtype=dtype, device=x.device)])[0]


def copy_(x: Tensor, source: Tensor) -> Tensor:
    """source copied into contiguous x of the same shape; `source` may be strided when the dtypes agree."""
    if source.dtype != x.dtype:
        return _unary(UNARY["copy"], [source.contiguous()], [x])[0]
    if source.shape != x.shape:
        raise ValueError(f"copy_: {tuple(source.shape)} into {tuple(x.shape)}")
    native().copy_to_contiguous(
        pointer(source), pointer(x), list(x.shape), list(source.stride()), x.element_size()
    )
    return x


def clone(x: Tensor) -> Tensor:
    """A contiguous copy of x of any strides and any dtype of 1, 2, 4 or 8 bytes (transposes included)."""
    return copy_(torch.empty(x.shape, dtype=x.dtype, device=x.device), x)


# ---- reductions
# --------------------------------------------------------------------------------------------


def sum(x: Tensor, dim: Sequence[int] | int | None = None, keepdim: bool = False) -> Tensor:
    """aten::sum over all, the last or the first dimensions (those of `dim` must be adjacent at one end)."""
    return _reduce(x, dim, keepdim, mean=False)


def mean(x: Tensor, dim: Sequence[int] | int | None = None, keepdim: bool = False) -> Tensor:
    """aten::mean, with `sum`'s choice of dimensions."""
    return _reduce(x, dim, keepdim, mean=True)


def reduce_kind(x: Tensor, dim: Sequence[int] | int | None) -> str | None:
    """ "all", "last" or "first" when `dim` names all, the last or the first dimensions of x, else None."""
    dims = _dims(x, dim)
    if len(dims) == x.dim():
        return "all"
    if dims == list(range(x.dim() - len(dims), x.dim())):
        return "last"
    if dims == list(range(len(dims))):
        return "first"
    return None


def _dims(x: Tensor, dim: Sequence[int] | int | None) -> list[int]:
    if dim is None or (not isinstance(dim, int) and len(dim) == 0):
        return list(range(x.dim()))
    return sorted(d % x.dim() for d in ([dim] if isinstance(dim, int) else dim))


def _reduce(x: Tensor, dim: Sequence[int] | int | None, keepdim: bool, mean: bool) -> Tensor:
    kind, dims = reduce_kind(x, dim), _dims(x, dim)
    if kind is None:
        raise ValueError(
            f"native sums run over the first, the last or all dimensions, not {dims} of {x.dim()}"
        )
    kept = [s for d, s in enumerate(x.shape) if d not in dims]
    shape = [1 if d in dims else s for d, s in enumerate(x.shape)] if keepdim else kept
    y = torch.empty(shape, dtype=x.dtype, device=x.device)
    outer = math.prod(kept)
    count = math.prod(x.shape[d] for d in dims)
    scale = (1.0 / count if count else math.nan) if mean else 1.0
    code = dtype_code(x)
    if kind == "all":
        native().sum_all(pointer(x), pointer(y), x.numel(), scale, code, code)
    elif kind == "last":
        native().sum_last(
            x=pointer(x), y=pointer(y), rows=outer, cols=count, scale=scale, dtype=code, out_dtype=code
        )
    else:
        native().sum_first(
            x=pointer(x), y=pointer(y), rows=count, cols=outer, scale=scale, dtype=code, out_dtype=code
        )
    return y


# ---- lists
# -------------------------------------------------------------------------------------------------


def _foreach_binary_(name: str, xs: Tensors, others: Tensors | Tensor | float, alpha: float = 1.0) -> None:
    op = BINARY[name]
    if isinstance(others, torch.Tensor):
        others = float(others)
    if isinstance(others, (int, float)):
        _binary(op, xs, [], xs, alpha * others)
    elif len(others) and not isinstance(others[0], torch.Tensor):
        for x, number in zip(xs, others, strict=True):
            _binary(op, [x], [], [x], alpha * number)
    else:
        _binary(op, xs, others, xs, alpha)


def _foreach_add_(xs: Tensors, others: Tensors | float, alpha: float = 1.0) -> None:
    """aten::_foreach_add_ with a list of tensors or numbers, or one number."""
    _foreach_binary_("add", xs, others, alpha)


def _foreach_sub_(xs: Tensors, others: Tensors | float, alpha: float = 1.0) -> None:
    """aten::_foreach_sub_."""
    _foreach_binary_("sub", xs, others, alpha)


def _foreach_mul_(xs: Tensors, others: Tensors | Tensor | float) -> None:
    """aten::_foreach_mul_."""
    _foreach_binary_("mul", xs, others)


def _foreach_div_(xs: Tensors, others: Tensors | float) -> None:
    """aten::_foreach_div_."""
    _foreach_binary_("div", xs, others)


def _foreach_sqrt(xs: Tensors) -> list[Tensor]:
    """aten::_foreach_sqrt."""
    return list(_unary(UNARY["sqrt"], xs, [torch.empty_like(x) for x in xs]))


def _foreach_addcmul_(xs: Tensors, first: Tensors, second: Tensors, value: float = 1.0) -> None:
    """aten::_foreach_addcmul_: xs += value * first * second."""
    _ternary(False, xs, first, second, value)


def _foreach_addcdiv_(xs: Tensors, first: Tensors, second: Tensors, value: float = 1.0) -> None:
    """aten::_foreach_addcdiv_: xs += value * first / second."""
    _ternary(True, xs, first, second, value)


def _foreach_lerp_(xs: Tensors, ends: Tensors, weight: float) -> None:
    """aten::_foreach_lerp_ with one weight: xs += weight * (ends - xs)."""
    _ternary(False, xs, ends, (), weight)


def _ternary(divide: bool, xs: Tensors, first: Tensors, second: Tensors, value: float) -> None:
    for dtypes, group in _by_dtype(*((xs, first, second) if len(second) else (xs, first))):
        if len(set(dtypes)) > 1:
            raise TypeError(f"native list operations take one dtype per position, got {dtypes}")
        native().ternary(
            divide=divide,
            xs=[xs[i].data_ptr() for i in group],
            firsts=[first[i].data_ptr() for i in group],
            seconds=[second[i].data_ptr() for i in group] if len(second) else [],
            ys=[xs[i].data_ptr() for i in group],
            sizes=[xs[i].numel() for i in group],
            value=value,
            dtype=DTYPE_CODES[dtypes[0]],
        )


def _foreach_norm(xs: Tensors, ord: float = 2) -> list[Tensor]:
    """aten::_foreach_norm for ord 2: one 0-d tensor per input, of its dtype."""
    if ord != 2:
        raise ValueError(f"the native _foreach_norm is Euclidean, not of order {ord}")
    from mindspeed_ms.kernels.optimizer import multi_scale

    _, norms = multi_scale(xs, 1.0, want_norms=True)
    return [torch.tensor(n, dtype=x.dtype, device=x.device) for n, x in zip(norms, xs, strict=True)]
