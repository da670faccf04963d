"""``emerging_optimizers.orthogonalized_optimizers.muon_utils``."""

from __future__ import annotations

import torch
import torch.distributed as dist
from mindspeed_ms.kernels.muon import orthogonalize


def newton_schulz_tp(
    x: torch.Tensor,
    steps: int,
    coefficient_type: str,
    tp_group: dist.ProcessGroup | None,
    partition_dim: int | None = None,
    mode: str = "duplicated",
) -> torch.Tensor:
    """The orthogonalised ``x [rows, cols]``, float32, of which ranks hold parts along ``partition_dim``.

    ``mode``: "duplicated" or "distributed", as in :func:`mindspeed_ms.kernels.muon.orthogonalize`. ValueError
    for other names.
    """
    return orthogonalize(x, steps, coefficient_type, tp_group, partition_dim, mode)
