"""Attention to keys and values in a cache, whole or in blocks, as FlashAttention's inference calls do."""

from __future__ import annotations

import itertools

import torch
from mindspeed_ms.kernels.attention import Segment, attention
from mindspeed_ms.kernels.rope import turn


def paged_rows(block_table: torch.Tensor, lengths: list[int], block: int) -> torch.Tensor:
    """Where the tokens of each sequence lie in a cache of blocks, int64 (sum of lengths,).

    block_table: int (sequences, blocks), the numbers of each sequence's blocks in order; `block`: tokens in
    one. Sequences may share blocks. ValueError for a sequence longer than its blocks.
    """
    most = max(lengths, default=0)
    if most > block_table.shape[1] * block:
        raise ValueError(f"cache: {most} tokens do not fit in {block_table.shape[1]} blocks of {block}")
    steps = torch.arange(most)
    rows = block_table.cpu().long()[:, steps // block] * block + steps % block
    inside = steps < torch.tensor(lengths).unsqueeze(1)
    return rows[inside].to(block_table.device)


def cached_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    lengths: torch.Tensor,
    *,
    key: torch.Tensor | None = None,
    value: torch.Tensor | None = None,
    rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
    interleaved: bool = False,
    block_table: torch.Tensor | None = None,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
) -> torch.Tensor:
    """The result (b, s, heads, dv) of query (b, s, heads, d) on the first `lengths` (b,) tokens of the cache.

    The cache is (b, tokens, kv_heads, d or dv), or with `block_table` (:func:`paged_rows`) (blocks, tokens in
    a block, kv_heads, d or dv). `key` and `value` (b, new, kv_heads, ...) are first written behind these
    tokens, in place, and attended to as well. `rotary`: cos and sin (positions, rotary / 2) that turn query
    and new keys from position `lengths` on (a query that is neither causal nor in a window: all at it).
    The last query is aligned with the last key. No gradients. ValueError where the cache is too short.
    """
    batch, many = query.shape[:2]
    before = lengths.tolist()
    new = 0 if key is None else key.shape[1]
    after = [length + new for length in before]
    block = key_cache.shape[1]
    if block_table is None:
        block_table = torch.arange(batch, device=query.device).unsqueeze(1)
    rows = paged_rows(block_table, after, block)
    if rotary is not None:
        bounded = causal or (window is not None and window != (-1, -1))
        query = _turned(query, lengths, rotary, interleaved, 1 if bounded else 0)
        key = None if key is None else _turned(key, lengths, rotary, interleaved, 1)
    if key is not None and value is not None:
        ends = itertools.accumulate(after)
        places = torch.cat([rows[end - new : end] for end in ends])
        for cache, fresh in ((key_cache, key), (value_cache, value)):
            cache[places // block, places % block] = fresh.flatten(0, 1).to(cache.dtype)
    at = (rows // block, rows % block)
    segments, begin = [], 0
    for i, length in enumerate(after):
        segments.append(Segment(i * many, many, begin, length, length - many))
        begin += length
    out = attention(
        query.flatten(0, 1),
        key_cache[at],
        value_cache[at],
        segments=tuple(segments),
        causal=causal,
        window=window,
        scale=scale,
        softcap=softcap,
    )
    return out.view(batch, many, *out.shape[1:])


def _turned(
    x: torch.Tensor,
    lengths: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    interleaved: bool,
    step: int,
) -> torch.Tensor:
    """x (b, s, heads, d) turned by the tables' rows `lengths`, `lengths` + `step`, ..."""
    places = lengths.long() + step * torch.arange(x.shape[1], device=lengths.device).unsqueeze(1)
    tables = (table[places].unsqueeze(2) for table in rotary)  # (s, b, 1, rotary / 2)
    cos, sin = (t.repeat_interleave(2, -1) if interleaved else torch.cat((t, t), dim=-1) for t in tables)
    return turn(x.transpose(0, 1), cos, sin, "interleaved" if interleaved else "half").transpose(0, 1)
