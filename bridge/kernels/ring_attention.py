"""Ring attention on operators that keep maximum and sum of the softmax: Ascend's flash attention.

Forward, keys and values travel around the ring, and what each step finds is merged into what was found
before. Backward they travel again and their gradients with them: every step's operator is given maximum, sum
and output of all steps, by which alone the gradients of its keys depend on the others. Of the ring only this
rank's own keys and values are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from mindspeed_ms.kernels.attention.mindspore import (
    BOTTOM_RIGHT_CAUSAL,
    LANES,
    NO_BOUND,
    compressed_mask,
    padded,
)
from mindspeed_ms.kernels.operator import Operator, fake_like
from torch.autograd.function import once_differentiable

Tensor = torch.Tensor
Partial = tuple[Tensor, Tensor, Tensor]
"""Attention over some keys: output, fp32 (s, b, heads * d), d the width of the queries, of which the width of
the values counts; maximum and sum of the softmax, fp32 (b, heads, s, 8), eight times the same."""


@dataclass(frozen=True)
class Ranks:
    """This rank's place in the group, and what its tensors cover."""

    group: dist.ProcessGroup
    size: int
    rank: int

    @property
    def chunks(self) -> tuple[int, int]:
        """Numbers of the two chunks that this rank holds."""
        return self.rank, 2 * self.size - 1 - self.rank

    def natural_order(self) -> list[int]:
        """Where chunk 0, 1, ... lies among the chunks of rank 0, rank 1, ... one after the other."""
        c = self.size
        return [2 * j if j < c else 2 * (2 * c - 1 - j) + 1 for j in range(2 * c)]

    def visible(self, step: int, half: int, causal: bool) -> tuple[slice, slice, bool]:
        """Which queries see which of the keys that arrive at `step`, and whether causally: never a row none.

        Of an earlier rank's chunks all queries see the first, none sees the second; of a later rank's the
        second query chunk sees both, the first sees none.
        """
        if not causal or step == 0:
            return slice(None), slice(None), causal
        source = (self.rank - step) % self.size
        if source < self.rank:
            return slice(None), slice(half), False
        return slice(half, None), slice(None), False


def pass_on(ranks: Ranks, tensors: tuple[Tensor, ...], distance: int) -> tuple[list[Tensor], list[dist.Work]]:
    """Starts sending each tensor ``distance`` ranks further; what arrives, and what to wait for."""
    received = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors]
    to, source = ((ranks.rank + d) % ranks.size for d in (distance, -distance))
    operations = [
        dist.P2POp(operation, tensor, group=ranks.group, group_peer=peer)
        for sent, arriving in zip(tensors, received, strict=True)
        for operation, tensor, peer in ((dist.isend, sent.contiguous(), to), (dist.irecv, arriving, source))
    ]
    return received, dist.batch_isend_irecv(operations)


def unfit(query: Tensor, key: Tensor, value: Tensor, dropout: float, sink: Tensor | None) -> str | None:
    """Why a ring cannot go by Ascend's operators, or None."""
    width = query.shape[-1]
    reasons = (
        (not query.dtype == key.dtype == value.dtype, "query, key and value have different dtypes"),
        (query.dtype == torch.float32, "the operator takes 16-bit types"),
        (width % 16 or width > 512, "the operator takes head dimensions of multiples of 16 up to 512"),
        (value.shape[-1] > width, "the operator takes no values wider than the keys"),
        (dropout, "the operator draws no dropout mask"),
        (sink is not None, "the operator knows no sink"),
        (not (query.numel() and key.numel() and value.numel()), "there is nothing to compute"),
    )
    return next((reason for refused, reason in reasons if refused), None)


def ring_attention(
    query: Tensor, key: Tensor, value: Tensor, ranks: Ranks, causal: bool, scale: float
) -> Tensor:
    """This rank's rows (s, b, heads, dv) of the attention over all ranks' keys; collective, also backward.

    query (s, b, heads, d), key (s, b, kv_heads, d), value (s, b, kv_heads, dv), dv <= d: this rank's two
    chunks.
    """
    return _Ring.apply(query, key, value, ranks, causal, scale)


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, ranks: Ranks, causal: bool, scale: float
    ) -> Tensor:
        half, pair = query.shape[0] // 2, [key, value]
        merged: Any = None
        for step in range(ranks.size):
            works: list[dist.Work] = []
            if step + 1 < ranks.size:
                following, works = pass_on(ranks, tuple(pair), 1)
            rows, seen, diagonal = ranks.visible(step, half, causal)
            found = _STEP(query[rows], pair[0][seen], pair[1][seen], diagonal, scale)
            merged = found if merged is None else _merged(merged, found, rows)
            for work in works:
                work.wait()
            if step + 1 < ranks.size:
                pair = following
        out, peak, total = merged
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, peak, total)
        ctx.ranks, ctx.causal, ctx.scale = ranks, causal, scale
        return out.view(query.shape)[..., : value.shape[-1]].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, value, *merged = ctx.saved_tensors
        ranks, half, pair = ctx.ranks, query.shape[0] // 2, [key, value]
        dquery = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
        carried: list[Tensor] = []
        carrying: list[dist.Work] = []
        for step in range(ranks.size):
            works: list[dist.Work] = []
            if step + 1 < ranks.size:
                following, works = pass_on(ranks, tuple(pair), 1)
            rows, seen, diagonal = ranks.visible(step, half, ctx.causal)
            parts = (query[rows], pair[0][seen], pair[1][seen], grad[rows], *_rows_of(merged, rows))
            found = _STEP_BACKWARD(*parts, diagonal, ctx.scale)
            dquery[rows] += found[0]
            # The gradients of a rank's keys visit all ranks with them, and come home with the last step.
            for work in carrying:
                work.wait()
            if step == 0:
                carried = list(found[1:])
            else:
                for total, part in zip(carried, found[1:], strict=True):
                    total[seen] += part
            if ranks.size > 1:
                carried, carrying = pass_on(ranks, tuple(carried), 1)
            for work in works:
                work.wait()
            if step + 1 < ranks.size:
                pair = following
        for work in carrying:
            work.wait()
        return dquery.to(query.dtype), *carried, None, None, None


def _rows_of(partial: Partial | list[Tensor], rows: slice) -> Partial:
    out, peak, total = partial
    return out[rows], peak[:, :, rows], total[:, :, rows]


def _merged(before: Partial, step: Partial, rows: slice) -> Partial:
    """`before` with `step`, which is of these rows only, the last ones."""
    if rows == slice(None):
        return _MERGE(*before, *step)
    kept = _rows_of(before, slice(rows.start))
    merged = _MERGE(*_rows_of(before, rows), *step)
    out, peak, total = (
        torch.cat(pair, dim) for pair, dim in zip(zip(kept, merged, strict=True), (0, 2, 2), strict=True)
    )
    return out, peak, total


# ---- composite


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _scores(query: Tensor, key: Tensor, causal: bool, scale: float) -> Tensor:
    """(b, heads, s, sk)"""
    key = _wide(key).repeat_interleave(query.shape[2] // key.shape[2], 2)
    scores = torch.einsum("sbhd,tbhd->bhst", _wide(query), key) * scale
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores


def _spread(value: Tensor, heads: int, width: int) -> Tensor:
    """For each head of the queries, with zero channels up to `width`."""
    value = _wide(value).repeat_interleave(heads // value.shape[2], 2)
    return torch.nn.functional.pad(value, (0, width - value.shape[-1]))


def _step_composite(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> Partial:
    scores = _scores(query, key, causal, scale)
    peak = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - peak)
    total = weights.sum(-1, keepdim=True)
    out = torch.einsum("bhst,tbhd->sbhd", weights / total, _spread(value, *query.shape[2:]))
    lanes = (1, 1, 1, LANES)
    return out.flatten(2), peak.repeat(lanes), total.repeat(lanes)


def _merge_composite(
    out: Tensor, peak: Tensor, total: Tensor, step_out: Tensor, step_peak: Tensor, step_total: Tensor
) -> Partial:
    highest = torch.maximum(peak, step_peak)
    sums = total * torch.exp(peak - highest), step_total * torch.exp(step_peak - highest)
    whole = sums[0] + sums[1]
    (s, b, _), heads = out.shape, peak.shape[1]
    shares = ((part / whole)[..., :1].permute(2, 0, 1, 3) for part in sums)
    first, second = (
        x.view(s, b, heads, -1) * share for x, share in zip((out, step_out), shares, strict=True)
    )
    return (first + second).flatten(2), highest, whole


def _step_backward_composite(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad: Tensor,
    out: Tensor,
    peak: Tensor,
    total: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    heads, width = query.shape[2:]
    group = heads // key.shape[2]
    probs = torch.exp(_scores(query, key, causal, scale) - peak[..., :1]) / total[..., :1]
    grad = torch.nn.functional.pad(_wide(grad), (0, width - grad.shape[-1]))
    rows = (grad * out.view(grad.shape)).sum(-1).permute(1, 2, 0).unsqueeze(-1)
    values = torch.einsum("sbhd,tbhd->bhst", grad, _spread(value, heads, width))
    dscores = probs * (values - rows) * scale
    wide_key = _wide(key).repeat_interleave(group, 2)
    dquery = torch.einsum("bhst,tbhd->sbhd", dscores, wide_key)
    dkey = torch.einsum("bhst,sbhd->tbhd", dscores, _wide(query)).unflatten(2, (-1, group)).sum(3)
    dvalue = torch.einsum("bhst,sbhd->tbhd", probs, grad).unflatten(2, (-1, group)).sum(3)
    dvalue = dvalue[..., : value.shape[-1]]
    dquery, dkey, dvalue = (t.to(query.dtype).contiguous() for t in (dquery, dkey, dvalue))
    return dquery, dkey, dvalue


# ---- MindSpore: FlashAttentionScore, its gradient and ops.ring_attention_update


def _step_mindspore(query: Any, key: Any, value: Any, causal: bool, scale: float) -> tuple[Any, Any, Any]:
    import mindspore as ms
    from mindspore.ops.auto_generate import gen_ops_prim

    operator = gen_ops_prim.FlashAttentionScore(*_settings(query, causal, scale))
    operands = _flat(query, key, padded(value, query.shape[-1]))
    mask = compressed_mask() if causal else None
    peak, total, _, out = operator(*operands, None, None, None, mask, None, None, None)
    return out.to(ms.float32), peak, total  # the merge rounds to the dtype that it is given


def _merge_mindspore(*partials: Any) -> tuple[Any, Any, Any]:
    """MindSpore's page asks for positive maxima; the sum it gives knows differences of maxima only."""
    from mindspore import ops

    return ops.ring_attention_update(*partials, None, "SBH")


def _step_backward_mindspore(
    query: Any,
    key: Any,
    value: Any,
    grad: Any,
    out: Any,
    peak: Any,
    total: Any,
    causal: bool,
    scale: float,
) -> tuple[Any, Any, Any]:
    from mindspore import mint
    from mindspore.ops.auto_generate import gen_ops_prim

    width = query.shape[-1]
    operator = gen_ops_prim.FlashAttentionScoreGrad(*_settings(query, causal, scale))
    inputs = (query, key, padded(value, width))
    operands = _flat(*inputs, padded(grad, width))
    mask = compressed_mask() if causal else None
    grads = operator(*operands, None, None, None, mask, peak, total, None, out)
    dquery, dkey, dvalue = (g.reshape(t.shape) for g, t in zip(grads[:3], inputs, strict=True))
    return dquery, dkey, mint.narrow(dvalue, -1, 0, value.shape[-1])


def _flat(*tensors: Any) -> list[Any]:
    return [t.reshape((*t.shape[:2], -1)) for t in tensors]


def _settings(query: Any, causal: bool, scale: float) -> tuple[Any, ...]:
    mode = BOTTOM_RIGHT_CAUSAL if causal else 0
    return query.shape[-2], 1.0, scale, NO_BOUND, 0 if causal else NO_BOUND, 0, "SBH", mode


# ---- operators, without gradients of their own: _Ring is what is differentiated


def _fake_step(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> Partial:
    s, b, heads, width = query.shape
    out = _wide(query).new_empty(s, b, heads * width)
    return out, out.new_empty(b, heads, s, LANES), out.new_empty(b, heads, s, LANES)


_STEP = Operator(
    "ring_step(Tensor query, Tensor key, Tensor value, bool causal, float scale) -> (Tensor, Tensor, Tensor)",
    decides=("query", "key", "value"),
    fake=_fake_step,
    composite=_step_composite,
    mindspore=_step_mindspore,
    refusal=lambda query, key, value, *_: unfit(query, key, value, 0.0, None),
)

_MERGE = Operator(
    "ring_merge(Tensor out, Tensor peak, Tensor total, Tensor step_out, Tensor step_peak, Tensor step_total) "
    "-> (Tensor, Tensor, Tensor)",
    decides=("out",),
    fake=lambda *partials: tuple(map(fake_like, partials[:3])),
    composite=_merge_composite,
    mindspore=_merge_mindspore,
)

_STEP_BACKWARD = Operator(
    "ring_step_backward(Tensor query, Tensor key, Tensor value, Tensor grad, Tensor out, Tensor peak, "
    "Tensor total, bool causal, float scale) -> (Tensor, Tensor, Tensor)",
    decides=("query", "key", "value"),
    fake=lambda *tensors: tuple(map(fake_like, tensors[:3])),
    composite=_step_backward_composite,
    mindspore=_step_backward_mindspore,
    refusal=lambda query, key, value, *_: unfit(query, key, value, 0.0, None),
)
