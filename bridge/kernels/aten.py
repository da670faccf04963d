"""Plain ATen operations on the native kernels: the device's `csrc` route calls them by their aten names.

Every function takes contiguous tensors (npu or CPU, fp32, bf16 or fp16 unless said otherwise; `clone`
takes any strides), returns new contiguous ones or its first argument (names ending in "_"), and records
no gradient. `supports` says whether a call can come here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from mindspeed_ms.kernels.backend import DTYPE_CODES, dtype_code, native, pointer

Tensor = torch.Tensor
Tensors = Sequence[torch.Tensor]

#: Codes of csrc/kernels/elementwise.inl.
UNARY = {
    "sqrt": 1, "rsqrt": 2, "exp": 3, "tanh": 4, "sigmoid": 5, "neg": 6, "abs": 7, "reciprocal": 8,
    "square": 9,
    "relu": 10, "erf": 11,
}  # fmt: skip
BINARY = {"add": 0, "sub": 1, "mul": 2, "div": 3, "maximum": 4, "minimum": 5}
_GELU = {"none": 1, "tanh": 0}
_SILU = 3


def supports(*tensors: Tensor) -> bool:
    """True when all tensors are contiguous and of a native dtype."""
    return all(x.dtype in DTYPE_CODES and x.is_contiguous() for x in tensors)


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
            op,
            [lefts[i].data_ptr() for i in group],
            [rights[i].data_ptr() for i in group] if len(rights) else [],
            [ys[i].data_ptr() for i in group],
            [lefts[i].numel() for i in group],
            alpha,
            DTYPE_CODES[dtypes[0]],
            DTYPE_CODES[dtypes[-1]],
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
    along = broadcast_kind(x, other)
    if along is None:
        raise ValueError(
            f"other {tuple(other.shape)} repeats neither along rows nor columns of {tuple(x.shape)}"
        )
    rows = x.numel() // max(other.numel(), 1) if along == 0 else other.numel()
    cols = other.numel() if along == 0 else x.numel() // max(other.numel(), 1)
    native().binary_broadcast(
        op, pointer(x), pointer(other), pointer(y), rows, cols, along, alpha, dtype_code(x), dtype_code(other)
    )
    return y


def broadcast_kind(x: Tensor, other: Tensor) -> int | None:
    """0 when `other` is one block that repeats over x, 1 when it holds one value per run of x, else None."""
    shape = (1,) * (x.dim() - other.dim()) + tuple(other.shape)
    if len(shape) != x.dim():
        return None
    same = [a == b for a, b in zip(shape, x.shape, strict=True)]
    first = next((d for d, s in enumerate(shape) if s != 1), len(shape))
    if all(same[first:]):
        return 0
    last = next((d for d in reversed(range(len(shape))) if shape[d] != 1), -1)
    if all(same[: last + 1]) and all(s == 1 for s in shape[last + 1 :]):
        return 1
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
    return _unary(0, [x], [torch.empty(x.shape, dtype=dtype, device=x.device)])[0]


def copy_(x: Tensor, source: Tensor) -> Tensor:
    """source copied into contiguous x of the same shape; `source` may be strided when the dtypes agree."""
    if source.dtype != x.dtype:
        return _unary(0, [source.contiguous()], [x])[0]
    if source.shape != x.shape:
        raise ValueError(f"copy_: {tuple(source.shape)} into {tuple(x.shape)}")
    native().copy_to_contiguous(
        pointer(source), pointer(x), list(x.shape), list(source.stride()), x.element_size()
    )
    return x


def clone(x: Tensor) -> Tensor:
    """A contiguous copy of x of any strides and any dtype of 1, 2, 4 or 8 bytes (transposes included)."""
    return copy_(torch.empty(x.shape, dtype=x.dtype, device=x.device), x)


# ---- activations
# -------------------------------------------------------------------------------------------


def _activate(code: int, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    native().activation_forward(code, pointer(x), 0, pointer(y), 1, x.numel(), dtype_code(x), 0)
    return y


def _activate_backward(code: int, grad: Tensor, x: Tensor) -> Tensor:
    dx = torch.empty_like(x)
    native().activation_backward(
        code, pointer(grad), pointer(x), 0, pointer(dx), 0, 1, x.numel(), dtype_code(x), 0
    )
    return dx


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """aten::gelu."""
    return _activate(_GELU[approximate], x)


def gelu_backward(grad: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
    """aten::gelu_backward; grad in x's dtype."""
    return _activate_backward(_GELU[approximate], grad, x)


def silu(x: Tensor) -> Tensor:
    """aten::silu."""
    return _activate(_SILU, x)


def silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """aten::silu_backward; grad in x's dtype."""
    return _activate_backward(_SILU, grad, x)


# ---- softmax and norms: over the last dimension(s)
# ---------------------------------------------------------


def _softmax_call(logarithm: bool, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    cols = x.shape[-1]
    rows = x.numel() // cols if cols else 0
    native().softmax_forward(
        logarithm, False, pointer(x), 0, pointer(y), rows, cols, 1, 1, 0, 0, 0, 1.0, dtype_code(x)
    )
    return y


def _softmax_backward_call(logarithm: bool, grad: Tensor, y: Tensor) -> Tensor:
    dx = torch.empty_like(y)
    cols = y.shape[-1]
    rows = y.numel() // cols if cols else 0
    native().softmax_backward(
        logarithm, pointer(grad), pointer(y), 0, pointer(dx), rows, cols, 1, 1, 0, 0, 0, 1.0, dtype_code(y)
    )
    return dx


def _softmax(x: Tensor, dim: int = -1, half_to_float: bool = False) -> Tensor:
    """aten::_softmax over the last dimension."""
    _last(x, dim)
    return _softmax_call(False, x)


def _softmax_backward_data(grad: Tensor, output: Tensor, dim: int = -1, dtype: object = None) -> Tensor:
    """aten::_softmax_backward_data over the last dimension."""
    _last(output, dim)
    return _softmax_backward_call(False, grad, output)


def _log_softmax(x: Tensor, dim: int = -1, half_to_float: bool = False) -> Tensor:
    """aten::_log_softmax over the last dimension."""
    _last(x, dim)
    return _softmax_call(True, x)


def _log_softmax_backward_data(grad: Tensor, output: Tensor, dim: int = -1, dtype: object = None) -> Tensor:
    """aten::_log_softmax_backward_data over the last dimension."""
    _last(output, dim)
    return _softmax_backward_call(True, grad, output)


def _last(x: Tensor, dim: int) -> None:
    if x.dim() == 0 or dim % x.dim() != x.dim() - 1:
        raise ValueError(f"native softmax runs over the last dimension, not {dim} of {tuple(x.shape)}")


def _norm_shape(x: Tensor, normalized_shape: Sequence[int]) -> tuple[int, int, tuple[int, ...]]:
    cols = math.prod(normalized_shape)
    lead = x.dim() - len(normalized_shape)
    return (x.numel() // cols if cols else 0), cols, (*x.shape[:lead], *(1 for _ in normalized_shape))


def native_layer_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """aten::native_layer_norm: (y, mean, rstd), statistics in fp32; weight and bias share one dtype."""
    rows, cols, shape = _norm_shape(x, normalized_shape)
    y = torch.empty_like(x)
    mean, rstd = (torch.empty(shape, dtype=torch.float32, device=x.device) for _ in range(2))
    native().norm_forward(
        True,
        pointer(x),
        0,
        pointer(weight),
        pointer(bias),
        0,
        pointer(y),
        pointer(mean),
        pointer(rstd),
        rows,
        cols,
        eps,
        0.0,
        dtype_code(x),
        dtype_code(bias if weight is None else weight),
    )
    return y, mean, rstd


def native_layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """aten::native_layer_norm_backward; mean and rstd in fp32."""
    return _norm_backward(True, grad, x, normalized_shape, mean, rstd, weight, bias, output_mask)


def _fused_rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    """aten::_fused_rms_norm: (y, rstd), rstd in fp32; eps None is the smallest step of x's dtype."""
    rows, cols, shape = _norm_shape(x, normalized_shape)
    y = torch.empty_like(x)
    rstd = torch.empty(shape, dtype=torch.float32, device=x.device)
    native().norm_forward(
        False,
        pointer(x),
        0,
        pointer(weight),
        0,
        0,
        pointer(y),
        0,
        pointer(rstd),
        rows,
        cols,
        torch.finfo(x.dtype).eps if eps is None else eps,
        0.0,
        dtype_code(x),
        dtype_code(weight),
    )
    return y, rstd


def _fused_rms_norm_backward(
    grad: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    rstd: Tensor,
    weight: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """aten::_fused_rms_norm_backward."""
    return _norm_backward(False, grad, x, normalized_shape, None, rstd, weight, None, [*output_mask, False])[
        :2
    ]


def _norm_backward(center, grad, x, normalized_shape, mean, rstd, weight, bias, output_mask):
    rows, cols, _ = _norm_shape(x, normalized_shape)
    dx = torch.empty_like(x) if output_mask[0] else None
    wide = {"dtype": torch.float32, "device": x.device}
    dweight = torch.empty(tuple(normalized_shape), **wide) if output_mask[1] and weight is not None else None
    dbias = torch.empty(tuple(normalized_shape), **wide) if output_mask[2] and bias is not None else None
    native().norm_backward(
        center,
        pointer(grad),
        pointer(x),
        pointer(weight),
        0,
        pointer(mean),
        pointer(rstd),
        pointer(dx),
        pointer(dweight),
        pointer(dbias),
        rows,
        cols,
        0.0,
        dtype_code(x),
        dtype_code(weight),
    )
    return (
        dx,
        None if dweight is None else dweight.to(weight.dtype),
        None if dbias is None else dbias.to(bias.dtype),
    )


def embedding_dense_backward(
    grad: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> Tensor:
    """aten::embedding_dense_backward."""
    from mindspeed_ms.kernels.embedding import embedding_grad

    return embedding_grad(
        grad, indices, num_weights, padding_idx=padding_idx, scale_grad_by_freq=scale_grad_by_freq
    )


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
        native().sum_last(pointer(x), pointer(y), outer, count, scale, code, code)
    else:
        native().sum_first(pointer(x), pointer(y), count, outer, scale, code, code)
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
            divide,
            [xs[i].data_ptr() for i in group],
            [first[i].data_ptr() for i in group],
            [second[i].data_ptr() for i in group] if len(second) else [],
            [xs[i].data_ptr() for i in group],
            [xs[i].numel() for i in group],
            value,
            DTYPE_CODES[dtypes[0]],
        )


def _foreach_norm(xs: Tensors, ord: float = 2) -> list[Tensor]:
    """aten::_foreach_norm for ord 2: one 0-d tensor per input, of its dtype."""
    if ord != 2:
        raise ValueError(f"the native _foreach_norm is Euclidean, not of order {ord}")
    from mindspeed_ms.kernels.optimizer import multi_scale

    _, norms = multi_scale(xs, 1.0, want_norms=True)
    return [torch.tensor(n, dtype=x.dtype, device=x.device) for n, x in zip(norms, xs, strict=True)]
