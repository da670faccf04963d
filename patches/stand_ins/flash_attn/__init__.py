"""The two functions of ``flash_attn`` (FlashAttention 2) that Megatron's inference calls, on our kernels."""

from __future__ import annotations

from typing import Any

import torch
from mindspeed_ms.kernels import attention, cached_attention, packed_segments, paged_rows
from mindspeed_ms.patches.stand_ins.providing import refuse

__version__ = "2.7.4"
"""The release whose arguments these functions take: Megatron's dynamic batching wants 2.7.3 or later."""


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: torch.Tensor | None = None,
) -> torch.Tensor:
    """q ``(tokens, heads, d)`` of packed sequences -> the same shape; the last query sees the last key.

    k and v ``(tokens, kv_heads, d)``, or with ``block_table`` blocks ``(blocks, size, kv_heads, d)``; nothing
    flows back to those. Raises NotImplementedError for alibi_slopes and return_attn_probs.
    """
    refuse(
        "flash_attn.flash_attn_varlen_func", alibi_slopes=alibi_slopes, return_attn_probs=return_attn_probs
    )
    if block_table is not None:
        rows = paged_rows(block_table, cu_seqlens_k.diff().tolist(), k.shape[1])
        k, v = (cache.reshape(-1, *cache.shape[2:]).index_select(0, rows) for cache in (k, v))
    return attention(
        q,
        k,
        v,
        segments=packed_segments(cu_seqlens_q, cu_seqlens_k),
        causal=causal,
        window=None if tuple(window_size) == (-1, -1) else window_size,
        scale=softmax_scale,
        softcap=softcap,
        dropout=dropout_p,
    )


def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    cache_seqlens: int | torch.Tensor | None = None,
    cache_batch_idx: torch.Tensor | None = None,
    cache_leftpad: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: torch.Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> torch.Tensor:
    """q ``(b, s, heads, d)`` on the cache, into which k and v ``(b, new, kv_heads, d)`` are written first.

    Raises NotImplementedError for cache_batch_idx, cache_leftpad, alibi_slopes and return_softmax_lse.
    """
    refuse(
        "flash_attn.flash_attn_with_kvcache",
        cache_batch_idx=cache_batch_idx,
        cache_leftpad=cache_leftpad,
        alibi_slopes=alibi_slopes,
        return_softmax_lse=return_softmax_lse,
    )
    if cache_seqlens is None:
        cache_seqlens = 0 if k is not None else k_cache.shape[1]
    if not torch.is_tensor(cache_seqlens) or cache_seqlens.dim() == 0:
        cache_seqlens = torch.full((q.shape[0],), int(cache_seqlens), device=q.device)
    rotary: Any = None if rotary_cos is None else (rotary_cos, rotary_sin)
    return cached_attention(
        q,
        k_cache,
        v_cache,
        cache_seqlens.expand(q.shape[0]),
        key=k,
        value=v,
        rotary=rotary,
        interleaved=rotary_interleaved,
        block_table=block_table,
        causal=causal,
        window=None if tuple(window_size) == (-1, -1) else window_size,
        scale=softmax_scale,
        softcap=softcap,
    )
