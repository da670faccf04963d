"""``te.pytorch.DotProductAttention`` on Megatron's core attention, with what is patched into that."""

from __future__ import annotations

import inspect
from typing import Any

import torch


class DotProductAttention(torch.nn.Module):
    """Core attention. ``self.config``, which Megatron's subclass sets before ``__init__``, is read here."""

    def __init__(
        self,
        num_attention_heads: int,
        kv_channels: int | tuple[int, int],
        attention_dropout: float = 0.0,
        attn_mask_type: str = "causal",
        layer_number: int | None = None,
        attention_type: str = "self",
        softmax_scale: float | None = None,
        tp_size: int = 1,
        cp_group: Any = None,
        **options: Any,
    ) -> None:
        from megatron.core.transformer.dot_product_attention import DotProductAttention as CoreAttention
        from megatron.core.transformer.enums import AttnMaskType

        super().__init__()
        if cp_group is not None and torch.distributed.get_world_size(cp_group) > 1:
            raise NotImplementedError(
                "context parallelism needs Transformer Engine's ring attention, not implemented here: "
                "set --context-parallel-size 1"
            )
        arguments = {
            "config": self.config,
            "layer_number": layer_number,
            "attn_mask_type": AttnMaskType[attn_mask_type],
            "attention_type": attention_type,
            "attention_dropout": attention_dropout,
            "softmax_scale": softmax_scale,
        }
        known = inspect.signature(CoreAttention).parameters
        core = CoreAttention(**{name: value for name, value in arguments.items() if name in known})
        if isinstance(kv_channels, tuple):  # latent attention: the result has the width of the values
            core.hidden_size_per_partition = num_attention_heads // tp_size * kv_channels[1]
        # Not a submodule: its parameter (attention sink) is called here what Transformer Engine calls it.
        object.__setattr__(self, "_core", core)
        for name, parameter in core.named_parameters(recurse=False):
            self.register_parameter(name, parameter)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        attn_mask_type: str | None = None,
        core_attention_bias_type: str = "no_bias",
        core_attention_bias: torch.Tensor | None = None,
        qkv_format: str | None = None,
        **packed: Any,
    ) -> torch.Tensor:
        """query ``(sq, b, heads, d)``, key and value ``(sk, b, groups, d)`` -> ``(sq, b, heads * d)``.

        Raises NotImplementedError for an attention bias and for packed sequences.
        """
        from megatron.core.transformer.enums import AttnMaskType

        if core_attention_bias is not None:
            raise NotImplementedError("attention bias is not implemented: use a mask")
        if any(v is not None for name, v in packed.items() if name.startswith("cu_seqlens")):
            raise NotImplementedError("packed sequences are not implemented: pad them to one length")
        core = self._core
        if core.training != self.training:
            core.train(self.training)
        kind = None if attn_mask_type is None else AttnMaskType[attn_mask_type]
        return core(query, key, value, attention_mask, attn_mask_type=kind)
