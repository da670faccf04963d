"""``mamba_ssm`` and ``causal_conv1d`` as far as Megatron's Mamba layers use them, on our functions."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from mindspeed_ms.patches.stand_ins import refuse
from torch.nn import functional

MAMBA_VERSION, CONV_VERSION = "2.2.6.post3", "1.5.3.post1"
"""The releases whose arguments these functions take: from these on Megatron packs sequences."""

_NO_LIMIT = (0.0, float("inf"))


def _is_silu(activation: str | None) -> bool:
    if activation not in (None, "silu", "swish"):
        raise NotImplementedError(
            f"causal_conv1d: activation {activation!r} is not implemented: use silu or None"
        )
    return activation is not None


def _steps(
    dt: torch.Tensor, bias: torch.Tensor | None, softplus: bool, limit: tuple[float, float] = _NO_LIMIT
) -> torch.Tensor:
    """dt as the scan takes it: with its bias, positive, between the limits, in fp32."""
    dt = dt.float() if bias is None else dt.float() + bias.float()
    dt = functional.softplus(dt) if softplus else dt
    return dt if tuple(limit) == _NO_LIMIT else dt.clamp(*limit)


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
    from mindspeed_ms.kernels.state_space import causal_conv

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
    from mindspeed_ms.kernels.state_space import causal_conv

    refuse("causal_conv1d_update", cache_seqlens=cache_seqlens)
    if x.dim() == 2:
        one = causal_conv1d_update(
            x.unsqueeze(2), conv_state, weight, bias, activation, None, conv_state_indices
        )
        return one.squeeze(2)
    rows, inside = _rows(conv_state_indices, x)
    old, length = conv_state[rows], x.shape[2]
    fresh = x[inside]
    out = torch.zeros_like(x)
    out[inside] = causal_conv(
        fresh, weight, bias, silu=_is_silu(activation), before=old[..., old.shape[2] - weight.shape[1] + 1 :]
    )
    conv_state[rows] = torch.cat((old, fresh.to(old.dtype)), dim=2)[..., length:]
    return out


def _rows(indices: torch.Tensor | None, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the state, and which entries of the batch they are for."""
    if indices is None:
        indices = torch.arange(x.shape[0], device=x.device)
    inside = indices >= 0
    return indices[inside].long(), inside


def causal_conv1d_varlen_states(x: torch.Tensor, cu_seqlens: torch.Tensor, state_len: int) -> torch.Tensor:
    """The last ``state_len`` tokens of each sequence in x ``(tokens, d)``: ``(sequences, d, state_len)``."""
    from mindspeed_ms.kernels.state_space import last_values

    return last_values(x, cu_seqlens, state_len)


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
    dt_limit: tuple[float, float] = _NO_LIMIT,
    return_final_states: bool = False,
    return_varlen_states: bool = False,
) -> Any:
    """y ``(b, l, h, p)``; where asked for, the last state, and those of the sequences of ``cu_seqlens``."""
    from mindspeed_ms.kernels.state_space import scan

    steps = _steps(dt, dt_bias, dt_softplus, dt_limit)
    y, last = scan(x, steps, A, B, C, chunk_size, skip=D, state=initial_states, sequence=seq_idx)
    if z is not None:
        y = (y.float() * functional.silu(z.float())).to(y.dtype)
    out = (y,)
    if return_final_states:
        out += (last,)
    if return_varlen_states:
        ends = []
        for begin, end in itertools.pairwise(cu_seqlens.tolist()):
            part = [t[:, begin:end] for t in (x, steps, B, C)]
            ends.append(
                scan(*part[:2], A, *part[2:], chunk_size)[1] if end > begin else torch.zeros_like(last)
            )
        out += (torch.cat(ends),)
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
    dt_limit: tuple[float, float] = _NO_LIMIT,
    return_final_states: bool = False,
    activation: str = "silu",
    rmsnorm_weight: torch.Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: torch.Tensor | None = None,
    outproj_bias: torch.Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> torch.Tensor:
    """The whole layer between its projections: zxbcdt ``(b, l, channels)`` -> ``(b, l, h * p)``.

    Raises NotImplementedError for final states, norm and output projection: Megatron does these itself.
    """
    refuse(
        "mamba_split_conv1d_scan_combined",
        return_final_states=return_final_states,
        rmsnorm_weight=rmsnorm_weight,
        outproj_weight=outproj_weight,
    )
    heads, channels = D.shape if D.dim() == 2 else (D.shape[0], headdim)
    inner = heads * channels
    n = (zxbcdt.shape[-1] - 2 * inner - heads) // ngroups // 2
    z, xbc, dt = zxbcdt.split((inner, inner + 2 * ngroups * n, heads), dim=-1)
    xbc = causal_conv1d_fn(xbc.mT, conv1d_weight, conv1d_bias, seq_idx, activation=activation).mT
    x, b, c = xbc.split((inner, ngroups * n, ngroups * n), dim=-1)
    x, z = (t.unflatten(-1, (heads, channels)) for t in (x, z))
    b, c = (t.unflatten(-1, (ngroups, n)) for t in (b, c))
    y = mamba_chunk_scan_combined(
        *(x, dt, A, b, c, chunk_size, D, z, dt_bias, initial_states, seq_idx),
        dt_softplus=True,
        dt_limit=dt_limit,
    )
    return y.flatten(2)


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
    from mindspeed_ms.kernels.state_space import scan_step

    rows, inside = _rows(state_batch_indices, x)
    steps = _steps(dt[inside], dt_bias, dt_softplus)
    chosen, y = state[rows], torch.zeros_like(x)
    y[inside] = scan_step(chosen, x[inside], steps, A, B[inside], C[inside], D)
    state[rows] = chosen
    return y if z is None else (y.float() * functional.silu(z.float())).to(y.dtype)


class RMSNorm(torch.nn.Module):
    """``mamba_ssm.ops.triton.layernorm_gated.RMSNorm``: one parameter, ``weight``."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def forward(self, x: torch.Tensor, z: torch.Tensor | None = None) -> torch.Tensor:
        """x ``(..., hidden_size)``, gated by z of the same shape if given."""
        from mindspeed_ms.kernels.state_space import gated_rms_norm

        options = {"eps": self.eps, "group": self.group_size, "norm_first": self.norm_before_gate}
        return gated_rms_norm(x, self.weight, z, **options)
