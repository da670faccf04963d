"""``te.pytorch.attention.apply_rotary_pos_emb`` on our kernel: Megatron's rope fusion, on by default."""

from __future__ import annotations

import torch


def apply_rotary_pos_emb(
    t: torch.Tensor,
    freqs: torch.Tensor,
    tensor_format: str = "sbhd",
    interleaved: bool = False,
    fused: bool = True,
    cu_seqlens: torch.Tensor | None = None,
    cp_size: int = 1,
    cp_rank: int = 0,
) -> torch.Tensor:
    """t ``(s, b, heads, d)`` with its first channels rotated by freqs ``(s or more, 1, 1, rotary)``.

    Format "thd": t ``(tokens, heads, d)`` holds the sequences of ``cu_seqlens``, each from position 0 on.
    Raises NotImplementedError for another format.
    """
    from mindspeed_ms.kernels import packed_positions, rope

    layout = "interleaved" if interleaved else "half"
    if tensor_format == "thd" and cu_seqlens is not None:
        return rope(t, freqs, layout, positions=packed_positions(cu_seqlens, t.shape[0], cp_size, cp_rank))
    if tensor_format != "sbhd":
        raise NotImplementedError(
            f"rope fusion is not implemented for {tensor_format} tensors: set --no-rope-fusion"
        )
    return rope(t, freqs, layout)
