"""``te.pytorch.DotProductAttention`` on Megatron's core attention, with what is patched into that."""

from __future__ import annotations

import contextlib
import copy
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
        cp_comm_type: str = "p2p",
        window_size: tuple[int, int] | None = None,
        **options: Any,
    ) -> None:
        from megatron.core.transformer.dot_product_attention import DotProductAttention as CoreAttention
        from megatron.core.transformer.enums import AttnMaskType

        super().__init__()
        self._window = window_size
        self.set_context_parallel_group(cp_group, None, None, cp_comm_type)
        config = self.config
        if config.context_parallel_size > 1:
            # Megatron's core attention serves one rank: here it only tells scale, dropout and sink.
            config = copy.copy(config)
            config.context_parallel_size = 1
        arguments = {
            "config": config,
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

    def set_context_parallel_group(
        self,
        cp_group: Any,
        cp_global_ranks: Any,
        cp_stream: Any,
        cp_comm_type: str = "p2p",
    ) -> None:
        """The ranks that share the sequence from now on; None for this one alone.

        Raises NotImplementedError for a hierarchy of groups ("a2a+p2p").
        """
        if cp_comm_type == "a2a+p2p":
            raise NotImplementedError("--cp-comm-type a2a+p2p is not implemented: use p2p, all_gather or a2a")
        self.cp_group, self.cp_comm_type = cp_group, cp_comm_type

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
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
        if self.cp_group is not None and self.cp_group.size() > 1:
            return self._context_parallel(query, key, value, kind or core.attn_mask_type)
        attention_mask = _scores_mask(attention_mask, (kind or core.attn_mask_type).name, query, key)
        return core(query, key, value, attention_mask, attn_mask_type=kind)

    def _context_parallel(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: Any
    ) -> torch.Tensor:
        """Like Transformer Engine, goes by the kind of mask and takes no notice of the mask itself."""
        from megatron.core.tensor_parallel import get_cuda_rng_tracker
        from mindspeed_ms.kernels import context_parallel_attention

        if kind.name not in ("causal", "no_mask"):
            raise NotImplementedError(
                f"context parallelism with a {kind.name} mask is not implemented: use a causal mask, or "
                "--context-parallel-size 1"
            )
        core = self._core
        dropout = core.attention_dropout.p if self.training else 0.0
        fork = dropout > 0 and not self.config.sequence_parallel
        with get_cuda_rng_tracker().fork() if fork else contextlib.nullcontext():
            context = context_parallel_attention(
                query,
                key,
                value,
                self.cp_group,
                # Megatron-LM's flag has Megatron's spelling, Transformer Engine's argument another.
                method={"allgather": "all_gather"}.get(self.cp_comm_type, self.cp_comm_type),
                causal=kind.name == "causal",
                window=self._window,
                scale=core.softmax_scale * (core.scale_mask_softmax.scale or 1.0),
                dropout=dropout,
                sink=getattr(core, "softmax_offset", None),
            )
        return context.flatten(2)


def _scores_mask(
    mask: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None,
    kind: str,
    query: torch.Tensor,
    key: torch.Tensor,
) -> torch.Tensor | None:
    """A mask in Transformer Engine's forms as Megatron's core attention takes it; True hides.

    Padding is ``(b, 1, 1, sk)``, or for cross attention a pair, whose first says which queries are padding:
    nobody reads what they attend to, and a row with every key hidden has no softmax, so it is not used.
    """
    if isinstance(mask, (tuple, list)):
        mask = mask[-1]
    if mask is not None and kind == "padding_causal" and mask.shape[-2] == 1:
        future = torch.ones(query.shape[0], key.shape[0], dtype=torch.bool, device=mask.device)
        mask = mask | future.triu(key.shape[0] - query.shape[0] + 1)
    return mask
