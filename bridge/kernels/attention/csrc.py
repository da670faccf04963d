"""Attention on the csrc kernels (csrc/kernels/attention.inl): any strides but the last."""

from __future__ import annotations

from typing import Any

import torch
from mindspeed_ms.kernels.attention.plan import LAYOUTS, NOTHING, Pair, Plan, Sequences, Tensor, fake, sizes
from mindspeed_ms.kernels.backend import dtype_code, native


def forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *options: Any) -> Pair:
    """Output, and log-sum-exp of the scores."""
    plan = Plan(*options)
    query, key, value = _dense(query), _dense(key), _dense(value)
    sequences = plan.sequences(query, key)
    b, s, _ = sizes(query, plan.layout)
    out, lse = fake(query, key, value, mask, plan.layout)
    if sum(sequence[2] for sequence in sequences) != b * s:
        out.zero_()  # rows that no packed sequence covers are never written
    lse.fill_(NOTHING)
    if out.numel():
        native().attention_forward(
            _problem(query, key, value, mask, plan, sequences),
            q=_view(query, plan.layout),
            k=_view(key, plan.layout),
            v=_view(value, plan.layout),
            o=_view(out, plan.layout),
            lse=lse.data_ptr(),
            lse_batch=lse.stride(0),
            lse_head=lse.stride(1),
        )
    return out, lse


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    plan = Plan(*options)
    query, key, value, out = _dense(query), _dense(key), _dense(value), _dense(out)
    sequences = plan.sequences(query, key)
    dout = torch.zeros_like(out) if dout is None else _dense(dout)
    if dlse is not None:
        dlse = dlse.to(torch.float32).expand_as(lse).contiguous()
    rows = tuple(sizes(t, plan.layout)[0] * sizes(t, plan.layout)[1] for t in (query, key))
    whole = rows == tuple(sum(sequence[i] for sequence in sequences) for i in (2, 4))
    # What no sequence covers is never written; nor is anything when there is no query or no key.
    like = torch.empty_like if whole and query.numel() and key.numel() else torch.zeros_like
    grads = [like(t, memory_format=torch.contiguous_format) for t in (query, key, value)]
    if key.numel() and value.numel():
        native().attention_backward(
            _problem(query, key, value, mask, plan, sequences),
            q=_view(query, plan.layout),
            k=_view(key, plan.layout),
            v=_view(value, plan.layout),
            o=_view(out, plan.layout),
            dout=_view(dout, plan.layout),
            lse=lse.data_ptr(),
            dlse=0 if dlse is None else dlse.data_ptr(),
            lse_batch=lse.stride(0),
            lse_head=lse.stride(1),
            dq=_view(grads[0], plan.layout),
            dk=_view(grads[1], plan.layout),
            dv=_view(grads[2], plan.layout),
        )
    return grads[0], grads[1], grads[2]


def keep(sequences: Sequences, heads: int, index: int, drop: int, seed: int) -> Tensor:
    """Dropout factors (heads, s, sk), 0 or 1 / (1 - p), of sequence `index`: what the csrc kernels draw."""
    sequence = sequences[index]
    factors = torch.empty(heads, sequence[2], sequence[4])
    problem = native().AttentionProblem(
        sequences=list(sequences),
        heads_and_dims=(heads, heads, 1, 1),
        scale=1.0,
        softcap=0.0,
        window=(-1, -1),
        mask=(0, 0, 0, 0),
        drop=drop,
        seed=seed,
        dtype=0,
    )
    native().attention_keep(problem, index, factors.data_ptr())
    return factors


def _problem(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, plan: Plan, sequences: Sequences
) -> Any:
    b, s, heads = sizes(query, plan.layout)
    _, sk, kv_heads = sizes(key, plan.layout)
    hidden = (0, 0, 0, 0)
    if mask is not None:
        mask = mask.expand(b, heads, s, sk)
        hidden = (mask.data_ptr(), mask.stride(0), mask.stride(2), mask.stride(1))
    return native().AttentionProblem(
        sequences=list(sequences),
        heads_and_dims=(heads, kv_heads, query.shape[-1], value.shape[-1]),
        scale=plan.scale,
        softcap=plan.softcap,
        window=(plan.left, plan.right),
        mask=hidden,
        drop=plan.drop,
        seed=plan.seed,
        dtype=dtype_code(query),
    )


def _view(tensor: Tensor, layout: str) -> tuple[int, ...]:
    return (tensor.data_ptr(), *(tensor.stride(i) for i in LAYOUTS[layout]))


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()
