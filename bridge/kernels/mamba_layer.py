"""A Mamba-2 layer between its projections: what lies around the convolution and the scan of ``state_space``.

Steps ``dt`` get their bias, softplus and limits, results their gate; packed sequences and batches that are
decoded token by token are led to their states.
"""

from __future__ import annotations

import itertools

import torch
from mindspeed_ms.kernels.state_space import causal_conv, scan, scan_step
from torch.nn import functional

NO_LIMIT = (0.0, float("inf"))


def _steps(
    dt: torch.Tensor, bias: torch.Tensor | None, softplus: bool, limit: tuple[float, float] = NO_LIMIT
) -> torch.Tensor:
    """dt as the scan takes it: with its bias, positive, between the limits, in fp32."""
    dt = dt.float() if bias is None else dt.float() + bias.float()
    dt = functional.softplus(dt) if softplus else dt
    return dt if tuple(limit) == NO_LIMIT else dt.clamp(*limit)


def _gated(y: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
    return y if gate is None else (y.float() * functional.silu(gate.float())).to(y.dtype)


def _rows(indices: torch.Tensor | None, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the state, and which entries of the batch they are for."""
    if indices is None:
        indices = torch.arange(x.shape[0], device=x.device)
    inside = indices >= 0
    return indices[inside].long(), inside


def conv_step(
    x: torch.Tensor,
    state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    silu: bool = False,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Convolution of x (b, d, l) behind the values in `state` (b, d, w - 1 or more), which x joins in place.

    `rows` (b,): the row of state of each, -1 for none (its result is zero). Weight (d, w).
    """
    rows, inside = _rows(rows, x)
    old, length = state[rows], x.shape[2]
    fresh = x[inside]
    out = torch.zeros_like(x)
    before = old[..., old.shape[2] - weight.shape[1] + 1 :]
    out[inside] = causal_conv(fresh, weight, bias, silu=silu, before=before)
    state[rows] = torch.cat((old, fresh.to(old.dtype)), dim=2)[..., length:]
    return out


def chunk_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    chunk: int,
    *,
    skip: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    sequence: torch.Tensor | None = None,
    ends: torch.Tensor | None = None,
    softplus: bool = False,
    limit: tuple[float, float] = NO_LIMIT,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """y (b, l, h, p), the last state (b, h, p, n), and those of the sequences that `ends` (cu_seqlens) cut.

    Arguments as in :func:`.state_space.scan`; `bias`, `softplus` and `limit` make dt, `gate` is that of y.
    """
    steps = _steps(dt, bias, softplus, limit)
    y, last = scan(x, steps, a, b, c, chunk, skip=skip, state=state, sequence=sequence)
    states = None
    if ends is not None:
        parts = []
        for begin, end in itertools.pairwise(ends.tolist()):
            rows, at, keys, queries = (t[:, begin:end] for t in (x, steps, b, c))
            empty = end <= begin
            parts.append(torch.zeros_like(last) if empty else scan(rows, at, a, keys, queries, chunk)[1])
        states = torch.cat(parts)
    return _gated(y, gate), last, states


def split_conv_scan(
    channels: torch.Tensor,
    weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    bias: torch.Tensor,
    a: torch.Tensor,
    skip: torch.Tensor,
    chunk: int,
    *,
    width: int | None = None,
    groups: int = 1,
    silu: bool = True,
    state: torch.Tensor | None = None,
    sequence: torch.Tensor | None = None,
    limit: tuple[float, float] = NO_LIMIT,
) -> torch.Tensor:
    """`channels` (b, l, gate + x + b + c + dt) -> y (b, l, h * p): split, convolution and scan.

    skip: (h, p), or (h,) with `width` = p.
    """
    heads, width = skip.shape if skip.dim() == 2 else (skip.shape[0], width or 0)
    inner = heads * width
    n = (channels.shape[-1] - 2 * inner - heads) // groups // 2
    gate, mixed, dt = channels.split((inner, inner + 2 * groups * n, heads), dim=-1)
    mixed = causal_conv(mixed.mT, weight, conv_bias, silu=silu, sequence=sequence).mT
    x, b, c = mixed.split((inner, groups * n, groups * n), dim=-1)
    x, gate = (t.unflatten(-1, (heads, width)) for t in (x, gate))
    b, c = (t.unflatten(-1, (groups, n)) for t in (b, c))
    options = {"skip": skip, "gate": gate, "bias": bias, "state": state, "sequence": sequence}
    return chunk_scan(x, dt, a, b, c, chunk, **options, softplus=True, limit=limit)[0].flatten(2)


def gated_scan_step(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    *,
    skip: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    softplus: bool = False,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """y (b, h, p) of one token each; `state` (b, h, p, n) moves on in place. Arguments as in ``scan_step``.

    `rows` (b,): the row of state of each, -1 for none (its result is zero).
    """
    rows, inside = _rows(rows, x)
    steps = _steps(dt[inside], bias, softplus)
    chosen, y = state[rows], torch.zeros_like(x)
    y[inside] = scan_step(chosen, x[inside], steps, a, b[inside], c[inside], skip)
    state[rows] = chosen
    return _gated(y, gate)
