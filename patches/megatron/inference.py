"""Inference: dynamic batching and flash decoding call FlashAttention's kernels by name."""

from __future__ import annotations

from types import ModuleType

from mindspeed_ms.patches import flash_attention
from mindspeed_ms.patches.stand_ins import Provided, provide


def _flash_attn(module: ModuleType) -> None:
    module.__version__ = flash_attention.VERSION
    module.flash_attn_varlen_func = flash_attention.flash_attn_varlen_func
    module.flash_attn_with_kvcache = flash_attention.flash_attn_with_kvcache


provide(
    Provided(
        "flash_attn",
        _flash_attn,
        "dynamic batching and --flash-decode are refused without its two inference functions",
        package=True,
    )
)
