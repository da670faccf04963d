"""``grouped_gemm.ops``, on our kernels."""

from __future__ import annotations

import torch
from mindspeed_ms.kernels import grouped_matmul, grouped_weight_gradient


def gmm(
    a: torch.Tensor, b: torch.Tensor, batch_sizes: torch.Tensor, trans_a: bool = False, trans_b: bool = False
) -> torch.Tensor:
    """``[rows, n]``: ``batch_sizes[i]`` rows of ``a [rows, k]``, in order, times ``b[i] [k, n]``.

    ``trans_b``: each ``b[i]`` is ``[n, k]``. ``trans_a``: of ``b [rows, n]`` each group's rows are multiplied
    with the transpose of those of ``a``: ``[groups, k, n]``, not differentiable.
    """
    counts = batch_sizes.tolist()
    if trans_a:
        return grouped_weight_gradient(a.detach(), b.detach(), counts)
    return grouped_matmul(a, b, counts, turned=trans_b)
