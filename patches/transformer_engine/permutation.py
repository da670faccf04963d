"""``te.pytorch.permutation``: tokens sorted by expert and back, as indexing in torch.

The map of a permutation, opaque to Megatron, holds the expert and the token of each row: ``[2, rows]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def _rows(routing_map: torch.Tensor, count: int, map_type: str) -> torch.Tensor:
    """Expert and token of each row, sorted by expert, then token, of a boolean ``[tokens, experts]``."""
    if map_type != "mask":
        raise NotImplementedError(f"permutation by {map_type!r} is not implemented: give a mask")
    rows = routing_map.t().nonzero().t()
    return rows[:, :count] if count > 0 else rows


def moe_permute(
    inp: torch.Tensor,
    routing_map: torch.Tensor,
    num_out_tokens: int = -1,
    max_token_num: int = -1,
    map_type: str = "mask",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens ``[tokens, hidden]`` of each expert, one expert after the other, and the map back."""
    rows = _rows(routing_map, num_out_tokens, map_type)
    return inp.index_select(0, rows[1]), rows


def moe_permute_with_probs(
    inp: torch.Tensor, probs: torch.Tensor, routing_map: torch.Tensor, num_out_tokens: int = -1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`moe_permute`, and in the middle the probability of each row, of ``probs [tokens, experts]``."""
    permuted, rows = moe_permute(inp, routing_map, num_out_tokens)
    return permuted, probs[rows[1], rows[0]], rows


def moe_unpermute(
    inp: torch.Tensor,
    row_id_map: torch.Tensor,
    merging_probs: torch.Tensor | None = None,
    restore_shape: Sequence[int] | None = None,
    map_type: str = "mask",
    probs: torch.Tensor | None = None,
) -> torch.Tensor:
    """Each token's rows summed, weighted with ``merging_probs [tokens, experts]`` when given.

    ``restore_shape``: that of the tokens before, of ``inp`` by default.
    """
    if map_type != "mask":
        raise NotImplementedError(f"permutation by {map_type!r} is not implemented: give a mask")
    weights = probs if merging_probs is None else merging_probs
    expert, token = row_id_map
    rows = inp if weights is None else inp * weights[token, expert].unsqueeze(-1)
    out = torch.zeros(tuple(restore_shape or inp.shape), dtype=rows.dtype, device=rows.device)
    return out.index_add(0, token, rows).to(inp.dtype)


def _sorted(inp: torch.Tensor, split_sizes: torch.Tensor, sorted_index: torch.Tensor) -> torch.Tensor:
    chunks = torch.split(inp, split_sizes.tolist())
    return torch.cat([chunks[i] for i in sorted_index.tolist()])


def moe_sort_chunks_by_index(
    inp: torch.Tensor, split_sizes: torch.Tensor, sorted_index: torch.Tensor
) -> torch.Tensor:
    """The chunks of ``inp``, ``split_sizes`` rows each, in the order ``sorted_index``."""
    return _sorted(inp, split_sizes, sorted_index)


def moe_sort_chunks_by_index_with_probs(
    inp: torch.Tensor, probs: torch.Tensor, split_sizes: torch.Tensor, sorted_index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`moe_sort_chunks_by_index` of the rows and of their probabilities."""
    return _sorted(inp, split_sizes, sorted_index), _sorted(probs, split_sizes, sorted_index)
