"""Megatron's own DotProductAttention, which holds all scores of a head: ours never does."""

import contextlib
from typing import Any

import torch
from mindspeed_ms.patches.registry import around


@around(
    "megatron.core.transformer.dot_product_attention:DotProductAttention.forward",
    reason="the matrix of scores costs memory and time; the kernel computes it block by block",
)
def forward(
    original: Any,
    self: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    attn_mask_type: Any = None,
    attention_bias: torch.Tensor | None = None,
    packed_seq_params: Any = None,
) -> torch.Tensor:
    """Context ``[sq, b, heads * dim]`` of query ``[sq, b, heads, dim]``, key, value ``[sk, b, groups, dim]``.

    Megatron's own way is kept for what it refuses (bias, packed sequences), for ``attention_backend``
    "unfused", and on the host route, whose numbers (dropout included) are plain torch's.
    """
    from megatron.core.tensor_parallel import get_cuda_rng_tracker
    from mindspeed_ms.kernels import attention
    from mindspeed_ms.kernels.attention import mask_is_causal
    from mindspeed_ms.routes import implementation

    refused = attention_bias is not None or packed_seq_params is not None
    backend = getattr(getattr(self.config, "attention_backend", None), "name", "auto")
    if refused or backend == "unfused" or implementation(query, key, value) == "composite":
        return original(
            self, query, key, value, attention_mask, attn_mask_type, attention_bias, packed_seq_params
        )
    softmax = self.scale_mask_softmax
    window = getattr(softmax, "window_size", None)
    if window is not None:  # Megatron then makes its own mask
        causal, attention_mask = False, None
    elif attention_mask is None:
        causal = softmax.attn_mask_type.name == "causal" and query.shape[0] > 1
    else:
        causal = mask_is_causal(attention_mask, query.shape[0], key.shape[0])
        attention_mask = None if causal else attention_mask
    dropout = self.attention_dropout.p if self.training else 0.0
    fork = dropout > 0 and not self.config.sequence_parallel
    with get_cuda_rng_tracker().fork() if fork else contextlib.nullcontext():
        context = attention(
            query,
            key,
            value,
            causal=causal,
            mask=attention_mask,
            window=window,
            scale=self.softmax_scale * (softmax.scale or 1.0),
            dropout=dropout,
            sink=getattr(self, "softmax_offset", None),
        )
    return context.reshape(*context.shape[:2], -1)
