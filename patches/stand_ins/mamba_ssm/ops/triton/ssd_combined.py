"""``mamba_ssm.ops.triton.ssd_combined``."""

from __future__ import annotations

from typing import Any

import torch
from mindspeed_ms.kernels.mamba_layer import NO_LIMIT, chunk_scan, split_conv_scan
from mindspeed_ms.patches.stand_ins.providing import refuse


def mamba_chunk_scan_combined(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Any:
    """y ``(b, l, h, p)``; where asked for, the last state, and those of the sequences of ``cu_seqlens``.

    States are float32 (float64 for float64 inputs), whatever ``state_dtype`` would have them rounded to.
    """
    y, last, states = chunk_scan(
        *(x, dt, A, B, C, chunk_size),
        skip=D,
        gate=z,
        bias=dt_bias,
        state=initial_states,
        sequence=seq_idx,
        ends=cu_seqlens if return_varlen_states else None,
        softplus=dt_softplus,
        limit=dt_limit,
    )
    out = (y, *([last] if return_final_states else []), *([states] if return_varlen_states else []))
    return out if len(out) > 1 else y


def mamba_split_conv1d_scan_combined(
    zxbcdt: torch.Tensor,
    conv1d_weight: torch.Tensor,
    conv1d_bias: torch.Tensor | None,
    dt_bias: torch.Tensor,
    A: torch.Tensor,
    D: torch.Tensor,
    chunk_size: int,
    initial_states: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    dt_limit: tuple[float, float] = NO_LIMIT,
    return_final_states: bool = False,
    activation: str = "silu",
    rmsnorm_weight: torch.Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: torch.Tensor | None = None,
    outproj_bias: torch.Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    state_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The whole layer between its projections: zxbcdt ``(b, l, channels)`` -> ``(b, l, h * p)``.

    States as in :func:`mamba_chunk_scan_combined`. Raises NotImplementedError for final states, norm and
    output projection, which Megatron does itself, and for another activation than silu.
    """
    refuse(
        "mamba_split_conv1d_scan_combined",
        return_final_states=return_final_states,
        rmsnorm_weight=rmsnorm_weight,
        outproj_weight=outproj_weight,
        activation=activation not in (None, "silu", "swish"),
    )
    weights = (conv1d_weight, conv1d_bias, dt_bias, A, D)
    return split_conv_scan(
        zxbcdt,
        *weights,
        chunk_size,
        width=headdim,
        groups=ngroups,
        silu=activation is not None,
        state=initial_states,
        sequence=seq_idx,
        limit=dt_limit,
    )
