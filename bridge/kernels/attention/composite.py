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
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    if mask is not None:
        mask = mask.expand(q.shape[0], -1, -1, -1)
    # Of each batch entry, in the order of its rows.
    outs: list[list[Tensor]] = [[] for _ in range(q.shape[0])]
    sums: list[list[Tensor]] = [[] for _ in range(q.shape[0])]
    ends = [0] * q.shape[0]

    def leave_out(i: int, rows: int) -> None:
        nothing = q[i, :, :rows, :0].sum(-1, keepdim=True)  # zeros that have a gradient of zeros
        outs[i].append(nothing.expand(-1, -1, v.shape[-1]))
        sums[i].append(torch.full((q.shape[1], rows), NOTHING, dtype=wide, device=q.device))

    sequences = plan.sequences(query, key)
    for index, sequence in sorted(enumerate(sequences), key=lambda pair: pair[1][:2]):
        i, q0, s, k0, sk, _ = sequence
        leave_out(i, q0 - ends[i])
        ends[i] = q0 + s
        scores = q[i, :, q0 : q0 + s].to(wide) @ k[i, :, k0 : k0 + sk].to(wide).transpose(-1, -2) * plan.scale
        if plan.softcap:
            scores = plan.softcap * torch.tanh(scores / plan.softcap)
        hidden = ~visible(sequence, (plan.left, plan.right), query.device)
        if mask is not None:
            hidden = hidden | mask[i]
        scores = scores.masked_fill(hidden, NOTHING)
        lse = torch.logsumexp(scores, -1)
        probs = torch.exp(scores - lse.masked_fill(lse == NOTHING, 0.0).unsqueeze(-1))
        if plan.drop:
            factors = keep(sequences, q.shape[1], index, plan.drop, plan.seed)
            probs = probs * factors.to(probs.device, wide)
        outs[i].append((probs @ v[i, :, k0 : k0 + sk].to(wide)).to(query.dtype))
        sums[i].append(lse)
    for i in range(q.shape[0]):
        leave_out(i, q.shape[2] - ends[i])
    if outs:
        out = torch.stack([torch.cat(parts, 1) for parts in outs])
        lse = torch.stack([torch.cat(parts, 1) for parts in sums])
    else:  # an empty batch
        out, lse = q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=wide)
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
