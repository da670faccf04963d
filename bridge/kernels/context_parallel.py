"""Attention of a sequence that the ranks of a group share, in Megatron's load-balanced order of chunks.

The sequence of ``2 c`` chunks lies on ``c`` ranks: rank r holds chunk r and, behind it, chunk ``2 c - 1 - r``
(``megatron.core.utils.get_batch_on_this_cp_rank``), so that causal attention costs every rank the same.

Methods, by Transformer Engine's names (``cp_comm_type``):

* p2p: keys and values travel around the ring while the previous ones are computed with; partial results are
  merged by their log-sum-exp (Ring Attention, Liu et al. 2023), on Ascend by maximum and sum of the softmax
  (:mod:`mindspeed_ms.kernels.ring_attention`). No window.
* all_gather: every rank gathers all keys and values. Same sums as on one rank.
* a2a: every rank computes all rows for a share of the heads (DeepSpeed-Ulysses, Jacobs et al. 2023); the
  number of heads of query, key and value must be multiples of ``c``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from mindspeed_ms.kernels import ring_attention
from mindspeed_ms.kernels.attention import Segment, attention, with_sink
from mindspeed_ms.kernels.ring_attention import Ranks, pass_on
from mindspeed_ms.routes import choose
from torch.autograd.function import once_differentiable

Pair = tuple[torch.Tensor, torch.Tensor]


def context_parallel_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    group: dist.ProcessGroup,
    *,
    method: str = "p2p",
    causal: bool = True,
    window: tuple[int, int] | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    sink: torch.Tensor | None = None,
) -> torch.Tensor:
    """This rank's rows of the attention over the whole sequence; a collective call, also in backward.

    query (s, b, heads, d), key (s, b, kv_heads, d), value (s, b, kv_heads, dv): this rank's two chunks, s
    even. The result is (s, b, heads, dv). Options as in :func:`mindspeed_ms.kernels.attention.attention`;
    the dropout masks of ranks are as different as the states of their generators.
    ValueError for an unknown method, an odd s, a window with p2p, or heads that a2a cannot share.
    """
    if method not in METHODS:
        raise ValueError(f"cp_comm_type {method!r} is none of {', '.join(METHODS)}")
    if query.shape[0] % 2 or query.shape[0] != key.shape[0]:
        raise ValueError(
            f"context parallel attention needs two equal chunks per rank, got {query.shape[0]} rows "
            f"of query and {key.shape[0]} of key"
        )
    ranks = Ranks(group, group.size(), group.rank())
    options = {"scale": scale, "dropout": dropout}
    return METHODS[method](query, key, value, ranks, causal, window, sink, options)


def _ring(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ranks: Ranks,
    causal: bool,
    window: tuple[int, int] | None,
    sink: torch.Tensor | None,
    options: dict[str, Any],
) -> torch.Tensor:
    if window is not None:
        raise ValueError("a window over a ring (p2p) is not implemented: use all_gather or a2a")

    def refusal() -> str | None:
        return ring_attention.unfit(query, key, value, options["dropout"], sink)

    if choose("ring_step", query, key, value, refusal=refusal)[0] == "mindspore":
        scale = 1.0 / math.sqrt(query.shape[-1]) if options["scale"] is None else float(options["scale"])
        return ring_attention.ring_attention(query, key, value, ranks, causal, scale)
    half = query.shape[0] // 2
    parts: tuple[list[Pair], list[Pair]] = ([], [])  # of the first and of the second chunk's queries
    for step in range(ranks.size):
        incoming: list[dist.Work] = []
        if step + 1 < ranks.size:
            following = _Shift.apply(ranks, incoming, key, value)
        rows, seen, diagonal = ranks.visible(step, half, causal)
        found: Any = attention(
            query[rows], key[seen], value[seen], causal=diagonal, return_lse=True, **options
        )
        if rows == slice(None):
            out, lse = found
            parts[0].append((out[:half], lse[..., :half]))
            parts[1].append((out[half:], lse[..., half:]))
        else:
            parts[1].append(found)
        for work in incoming:
            work.wait()
        if step + 1 < ranks.size:
            key, value = following
    return torch.cat([_merge(part, sink) for part in parts])


def _merge(parts: list[Pair], sink: torch.Tensor | None) -> torch.Tensor:
    """One result of partial ones over disjoint keys: out (s, b, heads, d), lse fp32 (b, heads, s)."""
    out, total = parts[0]
    if len(parts) > 1:
        sums = torch.stack([lse for _, lse in parts])
        total = torch.logsumexp(sums, 0)
        weights = torch.exp(sums - total).permute(0, 3, 1, 2).unsqueeze(-1)
        out = sum(w * o.to(w.dtype) for w, (o, _) in zip(weights, parts, strict=True)).to(out.dtype)
    return out if sink is None else with_sink(out, total, sink, "sbhd")[0]


def _gathered(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ranks: Ranks,
    causal: bool,
    window: tuple[int, int] | None,
    sink: torch.Tensor | None,
    options: dict[str, Any],
) -> torch.Tensor:
    half = query.shape[0] // 2
    key, value = (_reorder(_Gather.apply(ranks, t), ranks.natural_order()) for t in (key, value))
    outs = []
    for rows, chunk in zip(query.split(half), ranks.chunks, strict=True):
        end = (chunk + 1) * half if causal else key.shape[0]
        place: dict[str, Any] = {"causal": causal, "window": window, "shift": chunk * half, "sink": sink}
        outs.append(attention(rows, key[:end], value[:end], **place, **options))
    return torch.cat(outs)


def _by_heads(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ranks: Ranks,
    causal: bool,
    window: tuple[int, int] | None,
    sink: torch.Tensor | None,
    options: dict[str, Any],
) -> torch.Tensor:
    c, (s, b, heads, _) = ranks.size, query.shape
    if heads % c or key.shape[2] % c:
        raise ValueError(
            f"a2a shares {heads} query heads and {key.shape[2]} key heads among {c} ranks: both must be "
            "multiples; use p2p or all_gather"
        )
    natural = ranks.natural_order()
    inverse = sorted(range(2 * c), key=natural.__getitem__)

    def all_rows(tensor: torch.Tensor) -> torch.Tensor:
        """(s, b, heads, d) -> (c * s, b, heads / c, d)"""
        shared = tensor.view(s, b, c, tensor.shape[2] // c, tensor.shape[3]).permute(2, 0, 1, 3, 4)
        return _reorder(_Exchange.apply(ranks, shared.contiguous()).flatten(0, 1), natural)

    if sink is not None:
        sink = sink.chunk(c)[ranks.rank]
    query, key, value = (all_rows(t) for t in (query, key, value))
    out = attention(query, key, value, causal=causal, window=window, sink=sink, **options)
    out = _Exchange.apply(ranks, _reorder(out, inverse).view(c, s, b, heads // c, -1))
    return out.permute(1, 2, 0, 3, 4).flatten(2, 3)


def context_parallel_packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    group: dist.ProcessGroup,
    cu_seqlens: torch.Tensor,
    cu_seqlens_padded: torch.Tensor | None = None,
    *,
    causal: bool = True,
    **options: Any,
) -> torch.Tensor:
    """This rank's rows of the attention within each packed sequence; a collective call, also in backward.

    query (t, heads, d), key (t, kv_heads, d), value (t, kv_heads, dv): of every sequence this rank's two of
    the ``2 c`` chunks, one after the other. cu_seqlens, cu_seqlens_padded: int (n + 1,), sums of the lengths
    of whole sequences without and with the padding behind each, whose lengths are multiples of ``2 c``. Every
    rank gathers all keys and values. The result is (t, heads, dv), zeros for padding; options (window, scale,
    dropout, sink) as in :func:`mindspeed_ms.kernels.attention.attention`. ValueError for lengths that the
    ranks cannot share.
    """
    ranks = Ranks(group, group.size(), group.rank())
    lengths = [end - begin for begin, end in itertools.pairwise(cu_seqlens.tolist())]
    begins = cu_seqlens.tolist() if cu_seqlens_padded is None else cu_seqlens_padded.tolist()
    shares = [end - begin for begin, end in itertools.pairwise(begins)]
    if any(share % (2 * ranks.size) for share in shares) or begins[-1] > query.shape[0] * ranks.size:
        raise ValueError(
            f"context parallel packed sequences need lengths divisible by {2 * ranks.size} that fill at most "
            f"{query.shape[0]} tokens a rank, got the sums {begins}"
        )
    order = _packed_order(ranks, begins, query.shape[0]).to(key.device)
    key, value = (_Gather.apply(ranks, t).index_select(0, order) for t in (key, value))
    outs = []
    for place, chunk in enumerate(ranks.chunks):
        segments = []
        for begin, share, length in zip(begins, shares, lengths, strict=False):
            half = share // (2 * ranks.size)
            first = chunk * half  # position of the chunk's first token in its sequence
            rows = min(max(length - first, 0), half)
            seen = min(length, first + half) if causal else length
            segments.append(Segment(begin // ranks.size + place * half, rows, begin, seen, first))
        outs.append(attention(query, key, value, causal=causal, segments=tuple(segments), **options))
    return outs[0] + outs[1]  # each has zeros where the other has rows


def _packed_order(ranks: Ranks, begins: list[int], tokens: int) -> torch.Tensor:
    """Where token 0, 1, ... of the packed sequences lies among the `tokens` of rank 0, of rank 1, ..."""
    places = [torch.empty(0, dtype=torch.int64)]
    for begin, end in itertools.pairwise(begins):
        half = (end - begin) // (2 * ranks.size)
        for chunk in range(2 * ranks.size):
            first = chunk < ranks.size
            rank = chunk if first else 2 * ranks.size - 1 - chunk
            at = rank * tokens + begin // ranks.size + (0 if first else half)
            places.append(torch.arange(at, at + half))
    return torch.cat(places)


METHODS: dict[str, Callable[..., torch.Tensor]] = {"p2p": _ring, "all_gather": _gathered, "a2a": _by_heads}


def _reorder(tensor: torch.Tensor, order: list[int]) -> torch.Tensor:
    """The equal chunks of dim 0 in another order: chunk ``order[0]`` first."""
    chunks = tensor.chunk(len(order))
    return torch.cat([chunks[i] for i in order])


class _Shift(torch.autograd.Function):
    """Tensors of the previous rank. What to wait for before they are read is appended to ``incoming``."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, incoming: list[dist.Work], *tensors: torch.Tensor) -> Any:
        ctx.ranks = ranks
        received, works = pass_on(ranks, tensors, 1)
        incoming.extend(works)
        return tuple(received)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        received, works = pass_on(ctx.ranks, grads, -1)
        for work in works:
            work.wait()
        return None, None, *received


class _Gather(torch.autograd.Function):
    """The tensors of all ranks, one after the other along dim 0."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, tensor: torch.Tensor) -> torch.Tensor:
        ctx.ranks = ranks
        out = tensor.new_empty(ranks.size * tensor.shape[0], *tensor.shape[1:])
        dist.all_gather_into_tensor(out, tensor.contiguous(), group=ranks.group)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        out = grad.new_empty(grad.shape[0] // ctx.ranks.size, *grad.shape[1:])
        dist.reduce_scatter_tensor(out, grad.contiguous(), group=ctx.ranks.group)
        return None, out


class _Exchange(torch.autograd.Function):
    """Block i of dim 0 goes to rank i; block j of the result is from rank j."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, tensor: torch.Tensor) -> torch.Tensor:
        ctx.ranks = ranks
        out = torch.empty_like(tensor)
        dist.all_to_all_single(out, tensor, group=ranks.group)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        out = torch.empty_like(grad, memory_format=torch.contiguous_format)
        dist.all_to_all_single(out, grad.contiguous(), group=ctx.ranks.group)
        return None, out
