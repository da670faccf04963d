"""Multi-latent attention: its rope fusion, on by default, is a pair of triton kernels."""

import torch
from mindspeed_ms.patches.registry import replace

REASON = "a triton kernel, and rope fusion is on by default"
MODULE = "megatron.core.fusions.fused_mla_yarn_rope_apply"


def _positions(
    tensor: torch.Tensor, cu_seqlens: torch.Tensor | None, ranks: int, rank: int, interleaved: bool
) -> torch.Tensor | None:
    from mindspeed_ms.kernels import packed_positions

    if interleaved:
        raise ValueError("interleaved rope of latent attention is not implemented: set --no-rope-fusion")
    return None if cu_seqlens is None else packed_positions(cu_seqlens, tensor.shape[0], ranks, rank)


@replace(f"{MODULE}:fused_apply_mla_rope_for_q", reason=REASON, versions=">=0.14")
def fused_apply_mla_rope_for_q(
    t: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    qk_head_dim: int,
    emb_dim: int,
    cu_seqlens_q: torch.Tensor | None = None,
    cp_rank: int = 0,
    cp_size: int = 1,
    rotary_interleaved: bool = False,
) -> torch.Tensor:
    """The query ``[sq, b, heads, qk_head_dim + emb_dim]`` with its last emb_dim channels rotated.

    Packed sequences come as ``[t, heads, qk_head_dim + emb_dim]``.
    """
    from mindspeed_ms.kernels import latent_query

    return latent_query(t, cos, sin, _positions(t, cu_seqlens_q, cp_size, cp_rank, rotary_interleaved))


@replace(f"{MODULE}:fused_apply_mla_rope_for_kv", reason=REASON, versions=">=0.14")
def fused_apply_mla_rope_for_kv(
    kv: torch.Tensor,
    k_pos_emb: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    emb_dim: int,
    k_dim: int,
    v_dim: int,
    cu_seqlens_kv: torch.Tensor | None = None,
    cp_rank: int = 0,
    cp_size: int = 1,
    rotary_interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Key ``[sk, b, heads, k_dim + emb_dim]`` and value ``[sk, b, heads, v_dim]``; packed ones without b."""
    from mindspeed_ms.kernels import latent_key_value

    positions = _positions(kv, cu_seqlens_kv, cp_size, cp_rank, rotary_interleaved)
    return latent_key_value(kv, k_pos_emb, cos, sin, k_dim, positions)
