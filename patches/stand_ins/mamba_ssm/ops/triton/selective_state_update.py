"""``mamba_ssm.ops.triton.selective_state_update``."""

from __future__ import annotations

import torch
from mindspeed_ms.kernels.mamba_layer import gated_scan_step


def selective_state_update(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: torch.Tensor | None = None,
) -> torch.Tensor:
    """y ``(b, h, p)`` of one token each; state ``(b, h, p, n)`` moves on in place.

    ``state_batch_indices`` ``(b,)``: the row of state of each, -1 for none (its result is zero).
    """
    return gated_scan_step(
        state, x, dt, A, B, C, skip=D, gate=z, bias=dt_bias, softplus=dt_softplus, rows=state_batch_indices
    )
