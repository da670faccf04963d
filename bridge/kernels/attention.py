"""Attention that never holds the matrix of scores: forward, backward, and the log-sum-exp for ring steps."""

from __future__ import annotations

import itertools
import math
import weakref
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from mindspeed_ms.kernels.backend import counted, draw_seed, dtype_code, native, version
from mindspeed_ms.kernels.dispatch import choose, on_mindspore
from torch.autograd.function import once_differentiable

Tensor = torch.Tensor
Pair = tuple[torch.Tensor, torch.Tensor]
Sequences = tuple[tuple[int, int, int, int, int, int], ...]
"""(batch, *Segment) of each sequence: AttentionSequence in csrc."""

LAYOUTS = {"sbhd": (1, 0, 2), "bshd": (0, 1, 2), "bhsd": (0, 2, 1)}
"""Where a layout keeps (batch, row, head); the last dimension is the head's."""


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


@dataclass(frozen=True)
class _Plan:
    """What forward and backward share, resolved from the public arguments."""

    layout: str
    scale: float
    softcap: float
    window: tuple[int, int]  # -1: no bound
    sequences: Sequences
    drop: int  # of 65536
    seed: int


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
) -> Tensor | tuple[Tensor, Tensor]:
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
    if layout not in LAYOUTS:
        raise ValueError(f"attention: unknown layout {layout!r}; use one of {tuple(LAYOUTS)} or cu_seqlens_q")
    _check(query, key, value, layout, sink, dropout)
    b, s, heads = (query.shape[i] for i in LAYOUTS[layout])
    sk = key.shape[LAYOUTS[layout][1]]
    plan = _Plan(
        layout,
        1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale),
        float(softcap or 0.0),
        (window[0], 0 if causal else window[1]) if window is not None else (-1, 0 if causal else -1),
        _sequences(b, s, sk, shift, segments),
        round(dropout * 65536),
        draw_seed(query) if dropout > 0 else 0,
    )
    if mask is not None:
        mask = mask.to(torch.bool).expand(b, heads, s, sk)
    one_dtype = query.dtype == key.dtype == value.dtype
    with_lse = return_lse or sink is not None

    def refusal() -> str | None:
        return _unfit(query, key, value, plan, with_lse)

    chosen = choose("attention", query, key, value, refusal=refusal)
    if chosen == "mindspore" and one_dtype:
        out, lse = _on_ascend(query, key, value, mask, plan, packed)
    elif chosen == "csrc" and one_dtype:
        out, lse = _Attention.apply(query, key, value, mask, plan)
    else:
        out, lse = _composite(query, key, value, mask, plan)
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
    query: Tensor, key: Tensor, value: Tensor, layout: str, sink: Tensor | None, dropout: float
) -> None:
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        raise ValueError(
            f"attention: query, key and value need 4 dimensions ({layout}), got "
            f"{query.dim()}, {key.dim()} and {value.dim()}"
        )
    batch, _, head = LAYOUTS[layout]
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)} ({layout})"
    if key.shape[:-1] != value.shape[:-1] or query.shape[batch] != key.shape[batch]:
        raise ValueError(f"attention: batch, rows or heads do not match: {shapes}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"attention: query and key have different head dimensions: {shapes}")
    if key.shape[head] == 0 or query.shape[head] % key.shape[head]:
        raise ValueError(f"attention: query heads are no multiple of key heads: {shapes}")
    if sink is not None and sink.shape != (query.shape[head],):
        raise ValueError(f"attention: sink has shape {tuple(sink.shape)}, expected ({query.shape[head]},)")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"attention: dropout is {dropout}, expected 0 <= dropout < 1")


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


def _sequences(b: int, s: int, sk: int, shift: int | None, segments: tuple[Segment, ...] | None) -> Sequences:
    if segments is None:
        return tuple((i, 0, s, 0, sk, sk - s if shift is None else shift) for i in range(b))
    for segment in segments:
        if segment.q_begin + segment.q_len > s or segment.k_begin + segment.k_len > sk:
            raise ValueError(f"attention: {segment} is beyond the {s} tokens of query or {sk} of key")
    return tuple((0, *segment) for segment in segments)


def _unfit(query: Tensor, key: Tensor, value: Tensor, plan: _Plan, with_lse: bool) -> str | None:
    """Why MindSpore's flash attention does not take this call, or None."""
    width, bounded = query.shape[-1], plan.window != (-1, -1)
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    tiled = _tiles(plan.sequences, query.shape[LAYOUTS[plan.layout][1]], key.shape[LAYOUTS[plan.layout][1]])
    reasons = (
        (not query.dtype == key.dtype == value.dtype, "query, key and value have different dtypes"),
        (query.dtype == torch.float32, "the operator takes 16-bit types"),
        (plan.softcap, "the operator has no soft cap"),
        (with_lse and differentiable, "the operator has no gradient of the log-sum-exp"),
        (width % 16 or width > 512, "the operator takes head dimensions of multiples of 16 up to 512"),
        (value.shape[-1] > width, "the operator takes no values wider than the keys"),
        (not (query.numel() and key.numel() and value.numel()), "there is nothing to compute"),
        (not tiled, "the operator takes packed sequences without padding, none empty"),
        (bounded and any(s[5] != s[4] - s[2] for s in plan.sequences), "the operator aligns last tokens"),
    )
    return next((reason for refused, reason in reasons if refused), None)


def _tiles(sequences: Sequences, s: int, sk: int) -> bool:
    """Whether the sequences of a batch entry cover its queries and keys one after the other."""
    ends: dict[int, tuple[int, int]] = {}
    for i, q_begin, q_len, k_begin, k_len, _ in sequences:
        if (q_begin, k_begin) != ends.get(i, (0, 0)) or not q_len or not k_len:
            return False
        ends[i] = (q_begin + q_len, k_begin + k_len)
    return all(end == (s, sk) for end in ends.values())


def _on_ascend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, plan: _Plan, packed: bool
) -> Pair:
    options = {"scale": plan.scale, "dropout": plan.drop / 65536}
    if plan.drop:
        options["seed"] = plan.seed
    if packed:
        ends = zip(*((q + s, k + sk) for _, q, s, k, sk, _ in plan.sequences), strict=True)
        options |= dict(zip(("cu_seqlens_q", "cu_seqlens_k"), ends, strict=True))
    left, right = plan.window
    if mask is not None:
        if plan.window != (-1, -1):
            mask = mask | ~_visible(plan.sequences[0], plan.window, mask.device)
        options["mask"] = mask[:, :1] if mask.stride(1) == 0 else mask
    elif left >= 0 or right > 0:
        options["window"] = (left, right)
    else:
        options["causal"] = right == 0
    if packed:
        out, lse = on_mindspore("attention", *(t.squeeze(0) for t in (query, key, value)), **options)
        return out.unsqueeze(0), lse.t().unsqueeze(0)
    batch, row, head = LAYOUTS[plan.layout]
    out, lse = on_mindspore(
        "attention", *(t.permute(row, batch, head, 3) for t in (query, key, value)), **options
    )
    order = (row, batch, head)
    return out.permute(*(order.index(i) for i in range(3)), 3), lse


def _problem(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, plan: _Plan) -> Any:
    heads, kv_heads = query.shape[LAYOUTS[plan.layout][2]], key.shape[LAYOUTS[plan.layout][2]]
    hidden = (0, 0, 0, 0)
    if mask is not None:
        hidden = (mask.data_ptr(), mask.stride(0), mask.stride(2), mask.stride(1))
    return native().AttentionProblem(
        list(plan.sequences),
        (heads, kv_heads, query.shape[-1], value.shape[-1]),
        plan.scale,
        plan.softcap,
        plan.window,
        hidden,
        plan.drop,
        plan.seed,
        dtype_code(query),
    )


def _view(tensor: Tensor, layout: str) -> tuple[int, ...]:
    return (tensor.data_ptr(), *(tensor.stride(i) for i in LAYOUTS[layout]))


def _rows_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, mask, plan):
        query, key, value = _rows_contiguous(query), _rows_contiguous(key), _rows_contiguous(value)
        if mask is not None and mask.stride(-1) != 1:
            mask = mask.contiguous()
        b, s, heads = (query.shape[i] for i in LAYOUTS[plan.layout])
        whole = sum(sequence[2] for sequence in plan.sequences) == b * s
        # Rows that no packed sequence covers are never written.
        out = (torch.empty if whole else torch.zeros)(
            (*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device=query.device
        )
        lse = torch.full((b, heads, s), -math.inf, dtype=torch.float32, device=query.device)
        if out.numel():
            with counted("attention_forward", query):
                native().attention_forward(
                    _problem(query, key, value, mask, plan),
                    *(_view(t, plan.layout) for t in (query, key, value, out)),
                    lse.data_ptr(),
                    lse.stride(0),
                    lse.stride(1),
                )
        ctx.save_for_backward(query, key, value, mask, out, lse)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx, dout, dlse):
        query, key, value, mask, out, lse = ctx.saved_tensors
        dout = torch.zeros_like(out) if dout is None else _rows_contiguous(dout)
        if dlse is not None:
            dlse = dlse.to(torch.float32).expand_as(lse).contiguous()
        rows = query.shape[:-2].numel(), key.shape[:-2].numel()
        if ctx.plan.layout == "bhsd":
            rows = query.shape[0] * query.shape[2], key.shape[0] * key.shape[2]
        whole = rows == tuple(sum(sequence[i] for sequence in ctx.plan.sequences) for i in (2, 4))
        # What no sequence covers is never written; nor is anything when there is no query or no key.
        like = torch.empty_like if whole and query.numel() and key.numel() else torch.zeros_like
        grads = [like(t, memory_format=torch.contiguous_format) for t in (query, key, value)]
        if key.numel() and value.numel():
            with counted("attention_backward", query):
                native().attention_backward(
                    _problem(query, key, value, mask, ctx.plan),
                    *(_view(t, ctx.plan.layout) for t in (query, key, value, out, dout)),
                    lse.data_ptr(),
                    0 if dlse is None else dlse.data_ptr(),
                    lse.stride(0),
                    lse.stride(1),
                    *(_view(t, ctx.plan.layout) for t in grads),
                )
        wanted = [g if need else None for g, need in zip(grads, ctx.needs_input_grad[:3], strict=True)]
        return (*wanted, None, None)


def with_sink(out: Tensor, lse: Tensor, sink: Tensor, layout: str) -> Pair:
    """The softmax with one more score per head: it only takes weight away from the others."""
    total = torch.logaddexp(lse, sink.to(lse.dtype).view(1, -1, 1))
    batch, row, head = LAYOUTS[layout]
    kept = torch.exp(lse - total).unsqueeze(-1)  # (b, heads, s, 1)
    order = sorted(range(3), key=lambda i: (batch, head, row)[i])
    return (out * kept.permute(*order, 3).to(out.dtype)), total


def _visible(sequence: tuple[int, ...], window: tuple[int, int], device: torch.device) -> Tensor:
    """bool (s, sk): the keys that each query of one sequence sees."""
    _, _, s, _, sk, shift = sequence
    at = torch.arange(s, device=device).view(-1, 1) + shift
    keys = torch.arange(sk, device=device).view(1, -1)
    seen = torch.ones(s, sk, dtype=torch.bool, device=device)
    if window[0] >= 0:
        seen = seen & (keys >= at - window[0])
    if window[1] >= 0:
        seen = seen & (keys <= at + window[1])
    return seen


def attention_keep(plan_sequences: Sequences, heads: int, index: int, drop: int, seed: int) -> Tensor:
    """Dropout factors (heads, s, sk), 0 or 1 / (1 - p), of sequence `index`: what the csrc kernels draw."""
    sequence = plan_sequences[index]
    keep = torch.empty(heads, sequence[2], sequence[4])
    problem = native().AttentionProblem(
        list(plan_sequences), (heads, heads, 1, 1), 1.0, 0.0, (-1, -1), (0, 0, 0, 0), drop, seed, 0
    )
    native().attention_keep(problem, index, keep.data_ptr())
    return keep


def _composite(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, plan: _Plan) -> Pair:
    """The reference in torch operators, any floating dtype; holds the scores."""
    batch, row, head = LAYOUTS[plan.layout]
    q, k, v = (t.permute(batch, head, row, 3) for t in (query, key, value))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    outs: list[list[Tensor]] = [
        [] for _ in range(q.shape[0])
    ]  # of each batch entry, in the order of its rows
    sums: list[list[Tensor]] = [[] for _ in range(q.shape[0])]
    ends = [0] * q.shape[0]

    def leave_out(i: int, rows: int) -> None:
        nothing = q[i, :, :rows, :0].sum(-1, keepdim=True)  # zeros that have a gradient of zeros
        outs[i].append(nothing.expand(-1, -1, v.shape[-1]))
        sums[i].append(torch.full((q.shape[1], rows), -math.inf, dtype=wide, device=q.device))

    for index, sequence in sorted(enumerate(plan.sequences), key=lambda pair: pair[1][:2]):
        i, q0, s, k0, sk, _ = sequence
        leave_out(i, q0 - ends[i])
        ends[i] = q0 + s
        scores = q[i, :, q0 : q0 + s].to(wide) @ k[i, :, k0 : k0 + sk].to(wide).transpose(-1, -2) * plan.scale
        if plan.softcap:
            scores = plan.softcap * torch.tanh(scores / plan.softcap)
        hidden = ~_visible(sequence, plan.window, query.device)
        if mask is not None:
            hidden = hidden | mask[i]
        scores = scores.masked_fill(hidden, -math.inf)
        lse = torch.logsumexp(scores, -1)
        probs = torch.exp(scores - lse.masked_fill(lse == -math.inf, 0.0).unsqueeze(-1))
        if plan.drop:
            keep = attention_keep(plan.sequences, q.shape[1], index, plan.drop, plan.seed)
            probs = probs * keep.to(probs.device, wide)
        outs[i].append((probs @ v[i, :, k0 : k0 + sk].to(wide)).to(query.dtype))
        sums[i].append(lse)
    for i in range(q.shape[0]):
        leave_out(i, q.shape[2] - ends[i])
    if outs:
        out = torch.stack([torch.cat(parts, 1) for parts in outs])
        lse = torch.stack([torch.cat(parts, 1) for parts in sums])
    else:  # an empty batch
        out, lse = q[..., :1].expand(-1, -1, -1, v.shape[-1]), q[..., 0]
    inverse = [0, 0, 0, 3]
    for position, axis in enumerate((batch, head, row)):
        inverse[axis] = position
    return out.permute(*inverse), lse
