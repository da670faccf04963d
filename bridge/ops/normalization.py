"""Layer normalization."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from mindspeed_ms.kernels import aten_nn
from mindspeed_ms.ops.dtypes import cast, torch_dtype
from mindspeed_ms.ops.names import ag, mint, ms, prim
from mindspeed_ms.ops.registry import ASCEND_FLOATS, F32, Kernel, row

Tensor = torch.Tensor
aten = torch.ops.aten


def _normalized(x: ms.Tensor, shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows and columns of a layer norm: (leading sizes, (rows, columns))."""
    leading = x.shape[: len(x.shape) - len(shape)]
    return leading, (prod(leading), prod(shape))


def layer_norm(
    x: ms.Tensor, shape: Sequence[int], weight: ms.Tensor | None, bias: ms.Tensor | None, eps: float
) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
    # From elementary kernels: ops.LayerNorm takes twenty times torch's time and gives no reciprocal
    # deviation.
    leading, flat = _normalized(x, shape)
    rows = x.view(flat)
    mean = ag.mean_ext(rows, (1,), True, None)
    centred = ag.sub(rows, mean)
    rstd = ag.rsqrt(ag.add(ag.mean_ext(ag.square(centred), (1,), True, None), eps))
    y = ag.mul(centred, rstd)
    if weight is not None:
        y = ag.mul(y, weight.view(1, -1))
    if bias is not None:
        y = ag.add(y, bias.view(1, -1))
    statistics = (*leading, *(1 for _ in shape))
    return y.view(x.shape), mean.view(statistics), rstd.view(statistics)


def ascend_layer_norm(
    x: ms.Tensor, shape: Any, weight: ms.Tensor | None, bias: ms.Tensor | None, eps: float
) -> tuple[ms.Tensor, ...]:
    # Without weight or bias it ends the process. Mean and reciprocal deviation in the dtype of x, as torch's
    # CPU kernel has them.
    weight = mint.ones(tuple(shape), dtype=x.dtype) if weight is None else weight
    bias = mint.zeros(tuple(shape), dtype=x.dtype) if bias is None else bias
    found = prim.layer_norm_ext_op(x, tuple(shape), weight, bias, eps)
    return found[0], *(cast(y, torch_dtype(x)) for y in found[1:])


def csrc_layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Any:
    return aten_nn.native_layer_norm(x, shape, weight, bias, eps) if prod(shape) >= 8 else NotImplemented


row(
    "aten::native_layer_norm",
    lambda s: aten.native_layer_norm(s.x, s.x.shape[-1:], s.y[0], s.y[1], 1e-5),
    # ag.LayerNormExt without weight and bias is a segmentation fault.
    cpu=Kernel(layer_norm, (torch.float32, torch.float64)),
    ascend=Kernel(ascend_layer_norm, ASCEND_FLOATS),
    csrc=Kernel(csrc_layer_norm, F32),
)


def layer_norm_backward(
    grad: ms.Tensor,
    x: ms.Tensor,
    shape: Sequence[int],
    mean: ms.Tensor,
    rstd: ms.Tensor,
    weight: ms.Tensor | None,
    bias: ms.Tensor | None,
    mask: Sequence[bool],
) -> tuple[ms.Tensor | None, ms.Tensor | None, ms.Tensor | None]:
    _, flat = _normalized(x, shape)
    dy, rstd = grad.view(flat), rstd.view(-1, 1)
    normal = ag.mul(ag.sub(x.view(flat), mean.view(-1, 1)), rstd)
    dx = dweight = dbias = None
    if mask[0]:
        dn = dy if weight is None else ag.mul(dy, weight.view(1, -1))
        along = ag.mul(normal, ag.mean_ext(ag.mul(dn, normal), (1,), True, None))
        dx = ag.mul(ag.sub(ag.sub(dn, ag.mean_ext(dn, (1,), True, None)), along), rstd).view(x.shape)
    if mask[1] and weight is not None:
        dweight = ag.sum_ext(ag.mul(dy, normal), (0,), False, None).view(weight.shape)
    if mask[2] and bias is not None:
        dbias = ag.sum_ext(dy, (0,), False, None).view(bias.shape)
    return dx, dweight, dbias


def ascend_layer_norm_backward(
    grad: ms.Tensor,
    x: ms.Tensor,
    shape: Any,
    mean: ms.Tensor,
    rstd: ms.Tensor,
    weight: ms.Tensor | None,
    bias: ms.Tensor | None,
    wanted: Any,
) -> tuple[ms.Tensor | None, ...]:
    statistics = (cast(y, torch.float32) for y in (mean, rstd))
    filled_in = (mint.ones(tuple(shape), dtype=x.dtype) if y is None else y for y in (weight, bias))
    found = prim.layer_norm_grad_ext_op(grad, x, tuple(shape), *statistics, *filled_in, (1, 1, 1))
    return tuple(y if want else None for y, want in zip(found, wanted, strict=True))


def csrc_layer_norm_backward(grad: Tensor, x: Tensor, shape: Sequence[int], *rest: Any) -> Any:
    # Rows of a few columns have next to no variance: what is left of their gradient is rounding, magnified.
    return aten_nn.native_layer_norm_backward(grad, x, shape, *rest) if prod(shape) >= 8 else NotImplemented


row(
    "aten::native_layer_norm_backward",
    lambda s: aten.native_layer_norm_backward(
        s.x,
        s.y,
        s.x.shape[-1:],
        s.p[:, :1].contiguous(),
        s.p[:, 1:2].contiguous(),
        s.p[0],
        s.p[1],
        (True, True, True),
    ),
    # ag.LayerNormGrad wants variance + eps where its name says variance, and is wrong in float64.
    cpu=Kernel(layer_norm_backward, (torch.float32, torch.float64)),
    ascend=Kernel(ascend_layer_norm_backward, ASCEND_FLOATS),
    csrc=Kernel(csrc_layer_norm_backward, F32),
)
