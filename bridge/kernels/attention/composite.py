"""Attention in torch operators, any floating dtype; holds the scores."""

from __future__ import annotations

from typing import Any

import torch
from mindspeed_ms.kernels.attention.csrc import keep
from mindspeed_ms.kernels.attention.plan import LAYOUTS, NOTHING, Pair, Plan, Tensor, visible
from mindspeed_ms.kernels.operator import gradients


def forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *options: Any) -> Pair:
    """Output, and log-sum-exp of the scores."""
    plan = Plan(*options)
    batch, row, head = LAYOUTS[plan.layout]
    q, k, v = (t.permute(batch, head, row, 3) for t in (query, key, value))
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    outs: list[Tensor] = []  # in the order of the rows
    sums: list[Tensor] = []
    end = 0

    def leave_out(rows: int) -> None:
        everywhere = torch.ones((), dtype=torch.bool, device=q.device)
        nothing = q[:, :, :rows, :1].masked_fill(everywhere, 0.0)  # zeros that have a gradient of zeros
        outs.append(nothing.expand(-1, -1, -1, v.shape[-1]))
        sums.append(torch.full((*q.shape[:2], rows), NOTHING, dtype=wide, device=q.device))

    sequences = plan.sequences(query, key)
    # Without segments the sequences are the batch entries, all alike.
    apart = sequences[:1] if plan.segments is None else sequences
    for index, sequence in sorted(enumerate(apart), key=lambda pair: pair[1][:2]):
        _, q0, s, k0, sk, _ = sequence
        if not s and plan.segments is not None:
            continue
        if q0 > end:
            leave_out(q0 - end)
        end = q0 + s
        scores = q[:, :, q0:end].to(wide) @ k[:, :, k0 : k0 + sk].to(wide).transpose(-1, -2) * plan.scale
        if plan.softcap:
            scores = plan.softcap * torch.tanh(scores / plan.softcap)
        hidden = ~visible(sequence, (plan.left, plan.right), query.device)
        if mask is not None:
            hidden = hidden | mask
        scores = scores.masked_fill(hidden, NOTHING)
        lse = torch.logsumexp(scores, -1)
        probs = torch.exp(scores - lse.masked_fill(lse == NOTHING, 0.0).unsqueeze(-1))
        if plan.drop:
            drawn = range(len(sequences)) if plan.segments is None else (index,)
            factors = [keep(sequences, q.shape[1], i, plan.drop, plan.seed) for i in drawn]
            probs = probs * torch.stack(factors).to(probs.device, wide)
        outs.append((probs @ v[:, :, k0 : k0 + sk].to(wide)).to(query.dtype))
        sums.append(lse)
    if q.shape[2] > end or not outs:
        leave_out(q.shape[2] - end)
    out, lse = (t[0] if len(t) == 1 else torch.cat(t, 2) for t in (outs, sums))
    inverse = [0, 0, 0, 3]
    for position, axis in enumerate((batch, head, row)):
        inverse[axis] = position
    return out.permute(*inverse).contiguous(), lse


def backward(
    dout: Tensor | None,
    dlse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    *options: Any,
) -> tuple[Tensor, ...]:
    """Gradients of query, key and value."""
    inputs = (query, key, value)
    found = gradients(lambda q, k, v: forward(q, k, v, mask, *options), inputs, (dout, dlse))
    grads = (torch.zeros_like(t) if g is None else g for g, t in zip(found, inputs, strict=True))
    return tuple(g.contiguous() for g in grads)  # as every form gives them
