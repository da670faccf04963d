"""``causal_conv1d`` as far as Megatron's Mamba layers use it, on our kernels."""

from __future__ import annotations

import torch
from mindspeed_ms.kernels.mamba_layer import conv_step
from mindspeed_ms.kernels.state_space import causal_conv
from mindspeed_ms.patches.stand_ins.providing import refuse

__version__ = "1.5.3.post1"
"""The release whose arguments these functions take: from this one on Megatron packs sequences."""


def _is_silu(activation: str | None) -> bool:
    if activation not in (None, "silu", "swish"):
        raise NotImplementedError(
            f"causal_conv1d: activation {activation!r} is not implemented: use silu or None"
        )
    return activation is not None


def causal_conv1d_fn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """x ``(b, d, l)`` convolved with weight ``(d, w)``. Raises NotImplementedError for final states."""
    refuse("causal_conv1d_fn", return_final_states=return_final_states, final_states_out=final_states_out)
    return causal_conv(x, weight, bias, silu=_is_silu(activation), before=initial_states, sequence=seq_idx)


def causal_conv1d_update(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: torch.Tensor | None = None,
    conv_state_indices: torch.Tensor | None = None,
) -> torch.Tensor:
    """x ``(b, d)`` or ``(b, d, l)`` behind the values in conv_state ``(b, d, w - 1 or more)``; it joins them.

    ``conv_state_indices`` ``(b,)``: the row of conv_state of each, -1 for none (its result is zero). Raises
    NotImplementedError for ``cache_seqlens``.
    """
    refuse("causal_conv1d_update", cache_seqlens=cache_seqlens)
    tokens = x.unsqueeze(2) if x.dim() == 2 else x
    silu = _is_silu(activation)
    out = conv_step(tokens, conv_state, weight, bias, silu=silu, rows=conv_state_indices)
    return out.squeeze(2) if x.dim() == 2 else out
