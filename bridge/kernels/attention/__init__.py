"""Attention that never holds the matrix of scores: forward, backward, and the log-sum-exp for ring steps."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from mindspeed_ms.kernels.attention import composite, csrc, mindspore
from mindspeed_ms.kernels.attention.plan import LAYOUTS, OPTIONS, Plan, fake
from mindspeed_ms.kernels.backend import draw_seed, version
from mindspeed_ms.kernels.operator import Gradient, Operator, fake_like

Tensor = torch.Tensor

__all__ = ["LAYOUTS", "Segment", "attention", "mask_is_causal", "packed_segments", "with_sink"]


class Segment(NamedTuple):
    """Rows of packed queries and the packed keys that they may see: one sequence, or a part of one.

    Query i of the segment is aligned with key i + shift. Segments share no query; their keys are apart or,
    where no gradient is wanted, may overlap.
    """

    q_begin: int
    q_len: int
    k_begin: int
    k_len: int
    shift: int


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    window: tuple[int, int] | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    dropout: float = 0.0,
    sink: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    segments: tuple[Segment, ...] | None = None,
    shift: int | None = None,
    layout: str = "sbhd",
    return_lse: bool = False,
) -> Tensor | Any:
    """softmax(scale * query @ key^T) @ value per head (FlashAttention-2, Dao 2023; flash_attention_score).

    query: (s, b, heads, d), key: (sk, b, kv_heads, d), value: (sk, b, kv_heads, dv), all fp32, bf16 or fp16,
    sums in fp32; `layout` "bshd" and "bhsd" order them so. heads is a multiple of kv_heads (GQA, MQA). The
    result has query's layout, dtype, and dv. Inputs may be views: only the last dimension must be contiguous.

    * causal: query i sees keys up to i + shift; shift defaults to sk - s (the last query sees all keys).
    * window (left, right): query i sees keys i + shift - left .. i + shift + right; -1 is no bound.
    * mask: bool, broadcastable to (b, heads, s, sk), True hides the key (Megatron's convention).
    * softcap: scores become softcap * tanh(scores / softcap).
    * dropout: probability (a multiple of 1/65536), seed drawn from the generator of query's device.
    * sink: (heads,), a score that takes part in the softmax and has no value (Megatron's softmax_offset).
    * cu_seqlens_q, cu_seqlens_k: int (n + 1,), packed sequences; inputs are then (t, heads, d) ("thd").
    * segments: instead of them, where each packed sequence lies (:func:`packed_segments` makes them of
      sequences with padding between); tokens of no segment get zeros.
    * return_lse: also returns log sum exp of the scores, fp32 (b, heads, s), or (heads, t) for packed ones:
      what partial results of a context-parallel ring are merged by. It is differentiable.

    A query that sees no key gives zeros and log-sum-exp -inf. ValueError for shapes that do not fit.
    """
    if cu_seqlens_q is not None:
        segments = packed_segments(cu_seqlens_q, cu_seqlens_k, shift=shift)
    packed = segments is not None
    if packed:
        if query.dim() != 3:
            raise ValueError(
                f"attention: packed query has {query.dim()} dimensions, expected (tokens, heads, dim)"
            )
        if mask is not None:
            raise ValueError("attention: packed sequences take no mask; use causal or window")
        query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
        layout = "bshd"
    _check(query, key, value, None, layout)
    if sink is not None and sink.shape != (query.shape[LAYOUTS[layout][2]],):
        raise ValueError(
            f"attention: sink has shape {tuple(sink.shape)}, query is {tuple(query.shape)} ({layout})"
        )
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"attention: dropout is {dropout}, expected 0 <= dropout < 1")
    if mask is not None:
        mask = mask.to(torch.bool)
        mask = mask.view(*(1,) * (4 - mask.dim()), *mask.shape)
        s, sk = query.shape[LAYOUTS[layout][1]], key.shape[LAYOUTS[layout][1]]
        mask = mask.expand(*mask.shape[:2], s, sk)  # batch and heads stay 1 where they are
    differentiable_lse = return_lse or sink is not None
    if differentiable_lse:
        leaves = any(t.requires_grad for t in (query, key, value))
        differentiable_lse = torch.is_grad_enabled() and leaves
    left, right = (-1, -1) if window is None else window
    out, lse = _ATTENTION(
        query,
        key,
        value,
        mask,
        layout,
        1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale),
        float(softcap or 0.0),
        left,
        0 if causal else right,
        shift,
        None if segments is None else [number for segment in segments for number in segment],
        round(dropout * 65536),
        draw_seed(query) if dropout > 0 else 0,
        differentiable_lse,
    )
    if sink is not None:
        out, lse = with_sink(out, lse, sink, layout)
    if packed:
        out, lse = out.squeeze(0), lse.squeeze(0)
    return (out, lse) if return_lse else out


_judged: tuple[weakref.ref, tuple[int | None, int, int], bool] | None = None


def mask_is_causal(mask: Tensor, s: int, sk: int) -> bool:
    """Whether bool `mask` hides, for all heads and batch entries, exactly what `causal` hides of the scores.

    Causal attention is twice as fast as attention under a mask. The answer is kept for the last mask asked
    about (until it is written to): one iteration of Megatron passes the same one to every layer.
    """
    global _judged
    now = (version(mask), s, sk)
    if _judged is not None and _judged[0]() is mask and _judged[1] == now:
        return _judged[2]
    verdict = mask.dtype == torch.bool and mask.shape[-2:] == (s, sk) and mask.numel() == s * sk
    if verdict:
        causal = torch.ones(s, sk, dtype=torch.bool, device=mask.device).triu(sk - s + 1)
        verdict = torch.equal(mask.reshape(s, sk), causal)
    if now[0] is not None:
        _judged = (weakref.ref(mask), now, verdict)
    return verdict


def _check(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, layout: str, *options: Any
) -> None:
    """Of the arguments of the operator; the public function has no options yet when it asks."""
    if layout not in LAYOUTS:
        raise ValueError(f"attention: unknown layout {layout!r}; use one of {tuple(LAYOUTS)} or cu_seqlens_q")
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        raise ValueError(
            f"attention: query, key and value need 4 dimensions ({layout}), got "
            f"{query.dim()}, {key.dim()} and {value.dim()}"
        )
    batch, row, head = LAYOUTS[layout]
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)} ({layout})"
    if key.shape[:-1] != value.shape[:-1] or query.shape[batch] != key.shape[batch]:
        raise ValueError(f"attention: batch, rows or heads do not match: {shapes}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"attention: query and key have different head dimensions: {shapes}")
    if key.shape[head] == 0 or query.shape[head] % key.shape[head]:
        raise ValueError(f"attention: query heads are no multiple of key heads: {shapes}")
    scores = (query.shape[batch], query.shape[head], query.shape[row], key.shape[row])
    if mask is not None and not (mask.dim() == 4 and _broadcasts(mask.shape, scores)):
        raise ValueError(f"attention: mask {tuple(mask.shape)} does not broadcast to scores {scores}")
    if options and (segments := Plan(layout, *options).segments) is not None:
        found = zip(*(segments[i::5] for i in range(5)), strict=True)
        _check_segments((Segment(*numbers) for numbers in found), query.shape[row], key.shape[row])


def packed_segments(
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    cu_seqlens_q_padded: Tensor | None = None,
    cu_seqlens_k_padded: Tensor | None = None,
    *,
    shift: int | None = None,
) -> tuple[Segment, ...]:
    """Segments of packed sequences: int (n + 1,) sums of lengths, of keys by default those of queries.

    With padding between sequences (Transformer Engine's cu_seqlens_*_padded) the latter say where sequences
    begin, the former how long they are. `shift` is by default k_len - q_len: the last query of a sequence
    sees all its keys. ValueError for sums that decrease or do not begin at 0, or unequal numbers of them.
    """
    if cu_seqlens_k is None:
        cu_seqlens_k, cu_seqlens_k_padded = cu_seqlens_q, cu_seqlens_q_padded
    sums_q, sums_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    begins_q = sums_q if cu_seqlens_q_padded is None else cu_seqlens_q_padded.tolist()
    begins_k = sums_k if cu_seqlens_k_padded is None else cu_seqlens_k_padded.tolist()
    sums = (sums_q, sums_k, begins_q, begins_k)
    if any(len(s) != len(sums_q) or s[0] or any(a > b for a, b in itertools.pairwise(s)) for s in sums):
        raise ValueError(f"attention: cu_seqlens must begin with 0, not decrease, and be as many: {sums}")
    segments = []
    for i in range(len(sums_q) - 1):
        q_len, k_len = sums_q[i + 1] - sums_q[i], sums_k[i + 1] - sums_k[i]
        if q_len > begins_q[i + 1] - begins_q[i] or k_len > begins_k[i + 1] - begins_k[i]:
            raise ValueError(f"attention: sequence {i} is longer than its place with padding: {sums}")
        aligned = k_len - q_len if shift is None else shift
        segments.append(Segment(begins_q[i], q_len, begins_k[i], k_len, aligned))
    return tuple(segments)


def _broadcasts(shape: Sequence[int], scores: Sequence[int]) -> bool:
    """Whether every size is that of the scores, or 1 for batch and heads."""
    return all(
        size == whole or (size == 1 and i < 2)
        for i, (size, whole) in enumerate(zip(shape, scores, strict=True))
    )


def _check_segments(segments: Iterable[Segment], s: int, sk: int) -> None:
    for segment in segments:
        if (
            min(segment[:4]) < 0
            or segment.q_begin + segment.q_len > s
            or segment.k_begin + segment.k_len > sk
        ):
            raise ValueError(f"attention: {segment} is beyond the {s} tokens of query or {sk} of key")


def with_sink(out: Tensor, lse: Tensor, sink: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """The softmax with one more score per head: it only takes weight away from the others."""
    total = torch.logaddexp(lse, sink.to(lse.dtype).view(1, -1, 1))
    batch, row, head = LAYOUTS[layout]
    kept = torch.exp(lse - total).unsqueeze(-1)  # (b, heads, s, 1)
    order = sorted(range(3), key=lambda i: (batch, head, row)[i])
    return (out * kept.permute(*order, 3).to(out.dtype)), total


# ---- operators


def _save(ctx: Any, args: tuple[Any, ...], results: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*args[:4], *results)
    ctx.options = args[4:]
    if not Plan(*ctx.options).differentiable_lse:
        ctx.mark_non_differentiable(results[1])


def _gradient(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    rest = (None,) * (1 + len(ctx.options))
    if dout is None and dlse is None:
        return (None,) * 3 + rest
    grads = _BACKWARD(dout, dlse, *ctx.saved_tensors, *ctx.options)
    wanted = zip(grads, ctx.needs_input_grad, strict=False)
    return *(g if needed else None for g, needed in wanted), *rest


def _several_dtypes(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> str | None:
    """The refusal of csrc."""
    one = query.dtype == key.dtype == value.dtype
    return None if one else "query, key and value have different dtypes"


_BACKWARD = Operator(
    "attention_backward(Tensor? dout, Tensor? dlse, Tensor query, Tensor key, Tensor value, Tensor? mask, "
    f"Tensor out, Tensor lse, {OPTIONS}) -> (Tensor, Tensor, Tensor)",
    decides=("query", "key", "value"),
    fake=lambda dout, dlse, *rest: tuple(fake_like(t) for t in rest[:3]),
    composite=composite.backward,
    csrc=csrc.backward,
    csrc_refusal=lambda dout, dlse, *rest: _several_dtypes(*rest),
    mindspore=mindspore.backward,
    refusal=lambda dout, dlse, q, k, v, mask, out, lse, *rest: mindspore.refusal(q, k, v, mask, *rest),
)

_ATTENTION = Operator(
    f"attention(Tensor query, Tensor key, Tensor value, Tensor? mask, {OPTIONS}) -> (Tensor out, Tensor lse)",
    decides=("query", "key", "value"),
    fake=fake,
    composite=composite.forward,
    csrc=csrc.forward,
    csrc_refusal=_several_dtypes,
    mindspore=mindspore.forward,
    refusal=mindspore.refusal,
    check=_check,
    gradient=Gradient(_save, _gradient),
    lower=True,
)
