"""``transformer_engine.pytorch.attention``: core attention is Megatron's, with what is patched into that."""

from __future__ import annotations

import contextlib
import copy
import inspect
from types import SimpleNamespace
from typing import Any

import torch
from mindspeed_ms.kernels import (
    attention,
    context_parallel_attention,
    context_parallel_packed_attention,
    packed_positions,
    packed_segments,
    rope,
)

from ._extra_state import WithoutFp8


class DotProductAttention(WithoutFp8):
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
        tp_group: Any = None,
        cp_group: Any = None,
        cp_comm_type: str = "p2p",
        window_size: tuple[int, int] | None = None,
        **options: Any,
    ) -> None:
        from megatron.core.transformer.dot_product_attention import DotProductAttention as CoreAttention
        from megatron.core.transformer.enums import AttnMaskType

        super().__init__()
        self._window = window_size
        self.window_size = _shown_window(attn_mask_type, window_size)
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
            # None: Megatron's own groups, which need not exist where the caller has others
            "pg_collection": None if tp_group is None else SimpleNamespace(tp=tp_group),
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

        Packed sequences (``qkv_format`` "thd") come as ``(tokens, heads, d)`` with ``cu_seqlens_q`` and
        others of Megatron's PackedSeqParams, and go as ``(tokens, heads * d)``. Raises
        NotImplementedError for an attention bias.
        """
        from megatron.core.transformer.enums import AttnMaskType

        if core_attention_bias is not None:
            raise NotImplementedError("attention bias is not implemented: use a mask")
        core = self._core
        if core.training != self.training:
            core.train(self.training)
        kind = None if attn_mask_type is None else AttnMaskType[attn_mask_type]
        if qkv_format == "thd":
            return self._packed(query, key, value, (kind or core.attn_mask_type).name, packed)
        if self.cp_group is not None and self.cp_group.size() > 1:
            return self._context_parallel(query, key, value, kind or core.attn_mask_type)
        attention_mask = _scores_mask(attention_mask, (kind or core.attn_mask_type).name, query, key)
        return core(query, key, value, attention_mask, attn_mask_type=kind)

    def _context_parallel(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: Any
    ) -> torch.Tensor:
        """Like Transformer Engine, goes by the kind of mask and takes no notice of the mask itself."""
        if kind.name not in ("causal", "no_mask"):
            raise NotImplementedError(
                f"context parallelism with a {kind.name} mask is not implemented: use a causal mask, or "
                "--context-parallel-size 1"
            )
        with self._random_region():
            context = context_parallel_attention(
                query,
                key,
                value,
                self.cp_group,
                # Megatron-LM's flag has Megatron's spelling, Transformer Engine's argument another.
                method={"allgather": "all_gather"}.get(self.cp_comm_type, self.cp_comm_type),
                causal=kind.name == "causal",
                **self._options(),
            )
        return context.flatten(2)

    def _packed(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: str, packed: dict[str, Any]
    ) -> torch.Tensor:
        """Each sequence by itself, by the kind of mask; where ranks share them, whatever the cp_comm_type."""
        names = ("cu_seqlens_q", "cu_seqlens_kv", "cu_seqlens_q_padded", "cu_seqlens_kv_padded")
        sums = [packed.get(name) for name in names]
        if kind == "arbitrary" or sums[0] is None:
            raise ValueError(
                f"packed sequences with a {kind} mask and cu_seqlens_q {sums[0]}: give cu_seqlens_q, and a "
                "causal mask or none"
            )
        options = {"causal": "causal" in kind, **self._options()}
        with self._random_region():
            if self.cp_group is not None and self.cp_group.size() > 1:
                out = context_parallel_packed_attention(
                    query, key, value, self.cp_group, sums[0], sums[2], **options
                )
            else:
                # Transformer Engine aligns the first query with the first key unless told otherwise.
                shift = None if "bottom_right" in kind else 0
                out = attention(query, key, value, segments=packed_segments(*sums, shift=shift), **options)
        return out.flatten(1)

    def _options(self) -> dict[str, Any]:
        core = self._core
        return {
            "window": self._window,
            "scale": core.softmax_scale * (core.scale_mask_softmax.scale or 1.0),
            "dropout": core.attention_dropout.p if self.training else 0.0,
            "sink": getattr(core, "softmax_offset", None),
        }

    def _random_region(self) -> contextlib.AbstractContextManager[Any]:
        """Where dropout draws its masks from the state that tensor-parallel ranks do not share."""
        from megatron.core.tensor_parallel import get_cuda_rng_tracker

        dropout = self._core.attention_dropout.p if self.training else 0.0
        fork = dropout > 0 and not self.config.sequence_parallel
        return get_cuda_rng_tracker().fork() if fork else contextlib.nullcontext()


def _shown_window(kind: str, window: tuple[int, int] | None) -> tuple[int, int]:
    """What Transformer Engine's ``window_size`` says: -1 is no bound, and a causal mask bounds the right."""
    left, right = (-1, -1) if window is None else window
    if "causal" in kind:
        return left, 0
    return (-1, -1) if (left, right) == (-1, 0) else (left, right)


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
    layout = "interleaved" if interleaved else "half"
    if tensor_format == "thd" and cu_seqlens is not None:
        return rope(t, freqs, layout, positions=packed_positions(cu_seqlens, t.shape[0], cp_size, cp_rank))
    if tensor_format != "sbhd":
        raise NotImplementedError(
            f"rope fusion is not implemented for {tensor_format} tensors: set --no-rope-fusion"
        )
    return rope(t, freqs, layout)
