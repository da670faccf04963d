"""Muon's update of one matrix: Newton-Schulz over ranks, its scale, the momentum step around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from mindspeed_ms.kernels.optimizer import newton_schulz

#: Name -> the coefficients of the steps in turn (github.com/KellerJordan/modded-nanogpt).
COEFFICIENTS = {
    "simple": ((3.4445, -4.7750, 2.0315),),
    "quintic": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
}
EPSILON = 1e-15

#: Name -> what an orthogonal update of (rows, cols) is multiplied by.
SCALES: dict[str, Callable[[int, int], float]] = {
    "shape_scaling": lambda rows, cols: max(1.0, rows / cols) ** 0.5,
    "spectral": lambda rows, cols: max(rows, cols) ** 0.5,
    "unit_rms_norm": lambda rows, cols: (rows / cols) ** 0.5,
}


def orthogonalize(
    x: torch.Tensor,
    steps: int,
    coefficients: str,
    group: dist.ProcessGroup | None,
    split: int | None = None,
    mode: str = "duplicated",
) -> torch.Tensor:
    """The orthogonalised `x` (rows, cols), float32, of which the ranks of `group` hold parts along `split`.

    "duplicated": every rank gathers and orthogonalises the whole; "distributed": each multiplies its part,
    sums go over the ranks. In bfloat16 where torch's float32 matmul precision is "medium". ValueError for
    other names.
    """
    if coefficients not in COEFFICIENTS or mode not in ("duplicated", "distributed"):
        raise ValueError(f"newton_schulz_tp: unknown coefficients {coefficients!r} or mode {mode!r}")
    low = torch.get_float32_matmul_precision() == "medium"
    options: dict[str, Any] = {"eps": EPSILON, "dtype": torch.bfloat16 if low else torch.float32}
    arguments = (steps, COEFFICIENTS[coefficients])
    if split is None or group is None:
        return newton_schulz(x, *arguments, **options)
    if mode == "distributed":
        return newton_schulz(x, *arguments, split=(split, group), **options)
    parts = [torch.empty_like(x) for _ in range(group.size())]
    dist.all_gather(parts, x.contiguous(), group)
    whole = newton_schulz(torch.cat(parts, dim=split), *arguments, **options)
    return whole.chunk(group.size(), dim=split)[group.rank()]


def momentum_update(
    parameter: torch.Tensor,
    grad: torch.Tensor,
    momentum: torch.Tensor,
    *,
    beta: float,
    lr: float,
    weight_decay: float,
    decoupled: bool,
    nesterov: bool,
) -> torch.Tensor:
    """The update before it is orthogonalised. Moves `momentum` on and, if decoupled, decays `parameter`."""
    if decoupled:
        parameter.mul_(1.0 - weight_decay * lr)
    else:
        grad = grad.add(parameter, alpha=weight_decay)
    momentum.lerp_(grad, 1.0 - beta)
    return grad.lerp(momentum, beta) if nesterov else momentum
