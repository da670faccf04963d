"""``te.pytorch.permutation``: tokens sorted by expert and back, on our kernels.

The map of a permutation, opaque to Megatron, begins with the expert and the token of each row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mindspeed_ms.kernels import gather_rows, permute, unpermute
from mindspeed_ms.kernels.chunks import sort_chunks


def _only_masks(map_type: str) -> None:
    if map_type != "mask":
        raise NotImplementedError(f"permutation by {map_type!r} is not implemented: give a mask")


def moe_permute(
    inp: torch.Tensor,
    routing_map: torch.Tensor,
    num_out_tokens: int = -1,
    max_token_num: int = -1,
    map_type: str = "mask",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens ``[tokens, hidden]`` of each expert, one expert after the other, and the map back."""
    _only_masks(map_type)
    return permute(inp, routing_map, int(num_out_tokens) if num_out_tokens > 0 else -1)


def moe_permute_with_probs(
    inp: torch.Tensor, probs: torch.Tensor, routing_map: torch.Tensor, num_out_tokens: int = -1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`moe_permute`, and in the middle the probability of each row, of ``probs [tokens, experts]``."""
    permuted, rows = moe_permute(inp, routing_map, num_out_tokens)
    return permuted, _of_rows(probs, rows), rows


def moe_unpermute(
    inp: torch.Tensor,
    row_id_map: torch.Tensor,
    merging_probs: torch.Tensor | None = None,
    restore_shape: Sequence[int] | None = None,
    map_type: str = "mask",
    probs: torch.Tensor | None = None,
) -> torch.Tensor:
    """Each token's rows summed in float32, weighted with ``merging_probs [tokens, experts]`` when given.

    ``restore_shape``: that of the tokens before, of ``inp`` by default.
    """
    _only_masks(map_type)
    weights = probs if merging_probs is None else merging_probs
    return unpermute(inp, row_id_map, (restore_shape or inp.shape)[0], weights)


def _of_rows(probs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return gather_rows(probs.reshape(-1), rows[1] * probs.shape[1] + rows[0])


def moe_sort_chunks_by_index(
    inp: torch.Tensor, split_sizes: torch.Tensor, sorted_index: torch.Tensor
) -> torch.Tensor:
    """The chunks of ``inp``, ``split_sizes`` rows each, in the order ``sorted_index``."""
    return sort_chunks(split_sizes, sorted_index, inp)[0]


def moe_sort_chunks_by_index_with_probs(
    inp: torch.Tensor, probs: torch.Tensor, split_sizes: torch.Tensor, sorted_index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`moe_sort_chunks_by_index` of the rows and of their probabilities."""
    rows, row_probs = sort_chunks(split_sizes, sorted_index, inp, probs)
    return rows, row_probs
