"""Ring attention on operators that keep maximum and sum of the softmax: Ascend's flash attention.

Forward, keys and values travel around the ring, and what each step finds is merged into what was found
before. Backward they travel again and their gradients with them: every step's operator is given maximum, sum
and output of all steps, by which alone the gradients of its keys depend on the others. Of the ring only this
rank's own keys and values are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from mindspeed_ms.kernels.dispatch import gradient_on_mindspore, on_mindspore
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


@dataclass(frozen=True)
class Steps:
    """The operators of a ring; queries, keys and values are (s, b, heads, d)."""

    forward: Callable[[Tensor, Tensor, Tensor, bool], Partial]
    """(query, key, value, causal) -> attention over these keys."""
    merge: Callable[[Partial, Partial], Partial]
    """Attention of the same queries over both sets of keys."""
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Partial, bool], tuple[Tensor, Tensor, Tensor]]
    """(query, key, value, gradient of the output, attention over all keys, causal) -> this step's part of the
    gradients of query, key and value. The output of the attention is in query's dtype."""


def steps_on_ascend(scale: float) -> Steps:
    """FlashAttentionScore, its gradient and ring_attention_update."""

    def forward(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Partial:
        return on_mindspore("ring_step", query, key, value, causal=causal, scale=scale)

    def merge(before: Partial, step: Partial) -> Partial:
        return on_mindspore("ring_merge", *before, *step)

    def backward(
        query: Tensor, key: Tensor, value: Tensor, grad: Tensor, merged: Partial, causal: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        options = {"causal": causal, "scale": scale}
        return gradient_on_mindspore("ring_step", query, key, value, grad, *merged, **options)

    return Steps(forward, merge, backward)


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
    query: Tensor, key: Tensor, value: Tensor, ranks: Ranks, causal: bool, steps: Steps
) -> Tensor:
    """This rank's rows (s, b, heads, dv) of the attention over all ranks' keys; collective, also backward.

    query (s, b, heads, d), key (s, b, kv_heads, d), value (s, b, kv_heads, dv): this rank's two chunks.
    """
    return _Ring.apply(query, key, value, ranks, causal, steps)


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, ranks, causal, steps):
        half, merged, pair = query.shape[0] // 2, None, [key, value]
        for step in range(ranks.size):
            works: list[dist.Work] = []
            if step + 1 < ranks.size:
                following, works = pass_on(ranks, tuple(pair), 1)
            rows, seen, diagonal = ranks.visible(step, half, causal)
            found = steps.forward(query[rows], pair[0][seen], pair[1][seen], diagonal)
            merged = found if merged is None else _merged(merged, found, rows, steps)
            for work in works:
                work.wait()
            if step + 1 < ranks.size:
                pair = following
        out, peak, total = merged
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, peak, total)
        ctx.ranks, ctx.causal, ctx.steps = ranks, causal, steps
        return out.view(query.shape)[..., : value.shape[-1]].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        query, key, value, *merged = ctx.saved_tensors
        ranks, half, pair = ctx.ranks, query.shape[0] // 2, [key, value]
        dquery = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
        carried, carrying = [], []
        for step in range(ranks.size):
            works: list[dist.Work] = []
            if step + 1 < ranks.size:
                following, works = pass_on(ranks, tuple(pair), 1)
            rows, seen, diagonal = ranks.visible(step, half, ctx.causal)
            found = ctx.steps.backward(
                query[rows], pair[0][seen], pair[1][seen], grad[rows], _rows_of(merged, rows), diagonal
            )
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


def _merged(before: Partial, step: Partial, rows: slice, steps: Steps) -> Partial:
    """`before` with `step`, which is of these rows only, the last ones."""
    if rows == slice(None):
        return steps.merge(before, step)
    kept = _rows_of(before, slice(rows.start))
    merged = steps.merge(_rows_of(before, rows), step)
    return tuple(
        torch.cat(pair, dim) for pair, dim in zip(zip(kept, merged, strict=True), (0, 2, 2), strict=True)
    )
