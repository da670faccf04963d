"""``te.pytorch.attention.apply_rotary_pos_emb`` on our kernel: Megatron's rope fusion, on by default."""

from __future__ import annotations

from typing import Any

import torch


def apply_rotary_pos_emb(
    t: torch.Tensor,
    freqs: torch.Tensor,
    tensor_format: str = "sbhd",
    interleaved: bool = False,
    fused: bool = True,
    cu_seqlens: torch.Tensor | None = None,
    **packed: Any,
) -> torch.Tensor:
    """t ``(s, b, heads, d)`` with its first channels rotated by freqs ``(s or more, 1, 1, rotary)``.

    Raises NotImplementedError for another format: packed sequences ("thd") are refused by the attention, too.
    """
    from mindspeed_ms.kernels import rope

    if tensor_format != "sbhd" or cu_seqlens is not None:
        raise NotImplementedError(
            f"rope fusion is not implemented for {tensor_format} tensors: set --no-rope-fusion"
        )
    return rope(t, freqs, "interleaved" if interleaved else "half")
