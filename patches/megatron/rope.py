"""Rotary position embedding."""

from __future__ import annotations

from typing import Any

import torch
from mindspeed_ms.patches.registry import around
from mindspeed_ms.routes import takes

SEAM = "megatron.core.models.common.embeddings.rope_utils:_apply_rotary_pos_emb_bshd"
REASON = "split, negate, two products, sum and concatenation are one pass, cos and sin one table per model"


@around(SEAM, reason=REASON, versions="<0.19")
def apply_rotary_of_attention(
    original: Any,
    t: torch.Tensor,
    freqs: torch.Tensor,
    rotary_interleaved: bool = False,
    multi_latent_attention: bool = False,
    mscale: float = 1.0,
) -> torch.Tensor:
    """The same by the name that its fourth parameter had."""
    return apply_rotary(original, t, freqs, rotary_interleaved, multi_latent_attention, mscale)


@around(SEAM, reason=REASON, versions=">=0.19")
def apply_rotary(
    original: Any,
    t: torch.Tensor,
    freqs: torch.Tensor,
    rotary_interleaved: bool = False,
    mla_rotary_interleaved: bool = False,
    mscale: float = 1.0,
    multi_latent_attention: bool | None = None,
) -> torch.Tensor:
    """``t [s, b, heads, channels]``, its first channels rotated by angles ``freqs [s, 1 or b, 1, rotary]``.

    Every way to call it ends here: packed sequences, ``cos``/``sin`` given, context parallel slices.
    """
    from mindspeed_ms.kernels import rope

    if multi_latent_attention is not None:  # its name before 0.19
        mla_rotary_interleaved = multi_latent_attention
    fits = (
        t.dim() == freqs.dim() == 4
        and freqs.shape[0] == t.shape[0]
        and freqs.shape[1] in (1, t.shape[1])
        and freqs.shape[2] == 1
        and freqs.shape[-1] <= t.shape[-1]
        and not (rotary_interleaved and mla_rotary_interleaved)
        and not freqs.requires_grad
    )
    if not fits or not takes(t, freqs):
        return original(t, freqs, rotary_interleaved, mla_rotary_interleaved, mscale)
    layout = "to_half" if mla_rotary_interleaved else "interleaved" if rotary_interleaved else "half"
    return rope(t, freqs, layout, mscale=mscale)
