"""Megatron's small triton kernels, as the same mathematics in torch."""

import torch
from mindspeed_ms.patches.registry import replace

REASON = "it is a triton kernel, which has no code generator for device npu"
TENSOR_OPS = "megatron.core.inference.contexts.attention_context.triton.tensor_ops"


@replace(
    "megatron.core.fusions.fused_indices_converter:fused_indices_to_multihot",
    reason=REASON,
    versions=">=0.13",
)
def fused_indices_to_multihot(
    indices: torch.Tensor, probs_indices: torch.Tensor, num_of_local_experts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Routing map (bool) and probabilities, both ``[tokens, num_of_local_experts]``.

    ``indices`` and ``probs_indices`` are ``[tokens, topk]``; an index of -1 is no expert. Gradients flow to
    ``probs_indices``.
    """
    # One column more, which is cut off, takes what has no expert.
    column = torch.where(indices < 0, num_of_local_experts, indices).long()
    shape = (indices.shape[0], num_of_local_experts + 1)
    chosen = torch.zeros(shape, dtype=torch.bool, device=indices.device).scatter(1, column, True)
    probs = torch.zeros(shape, dtype=probs_indices.dtype, device=indices.device)
    probs = probs.scatter(1, column, probs_indices)
    return chosen[:, :-1].contiguous(), probs[:, :-1].contiguous()


def _check_rows(*tensors: torch.Tensor) -> None:
    """The contract of the kernels: one device and dtype, contiguous."""
    first = tensors[0]
    assert all(t.device == first.device for t in tensors), "All tensors must be on the same device"
    assert all(t.dtype == first.dtype for t in tensors), "All tensors must have the same dtype"
    assert all(t.is_contiguous() for t in tensors), "All tensors must be contiguous"


def _check_bounds(position: int, first: torch.Tensor, *others: torch.Tensor) -> None:
    """What the kernels check when asked to: equal row shapes, a position inside the first tensor."""
    assert all(t.ndim == first.ndim for t in others), "All tensors must have the same number of dimensions"
    assert all(t.shape[1:] == first.shape[1:] for t in others), "Dimensions must match across all tensors"
    assert 0 <= position <= first.shape[0], f"position {position} is outside of {first.shape[0]} rows"


@replace(f"{TENSOR_OPS}:tensor_get_slice_after", reason=REASON, versions=">=0.16")
def tensor_get_slice_after(
    input_tensor: torch.Tensor,
    output_tensor: torch.Tensor,
    pos_on_device: torch.Tensor,
    check_bounds: bool = False,
) -> None:
    """Copy ``input_tensor[position:]`` to the first rows of ``output_tensor``, position of one element."""
    _check_rows(input_tensor, output_tensor)
    position = int(pos_on_device[0])
    count = input_tensor.shape[0] - position
    if check_bounds:
        _check_bounds(position, input_tensor, output_tensor)
        assert count <= output_tensor.shape[0], f"{count} rows do not fit into {output_tensor.shape[0]}"
    count = min(count, output_tensor.shape[0])
    output_tensor[:count].copy_(input_tensor[position : position + count])


@replace(f"{TENSOR_OPS}:tensor_merge", reason=REASON, versions=">=0.16")
def tensor_merge(
    tensor_a: torch.Tensor,
    tensor_b: torch.Tensor,
    pos_on_device: torch.Tensor,
    output_tensor: torch.Tensor | None = None,
    check_bounds: bool = False,
) -> None:
    """The rows of ``tensor_a`` before the position, then those of ``tensor_b``; without output: in place."""
    output = tensor_a if output_tensor is None else output_tensor
    _check_rows(tensor_a, tensor_b, output)
    position = int(pos_on_device[0])
    if check_bounds:
        _check_bounds(position, tensor_a, tensor_b, output)
        assert output.shape[0] >= tensor_a.shape[0], "output_tensor must have the rows of tensor_a"
    if output is not tensor_a:
        output[:position].copy_(tensor_a[:position])
    count = min(tensor_b.shape[0], output.shape[0] - position)
    output[position : position + count].copy_(tensor_b[:count])


@replace(f"{TENSOR_OPS}:tensor_masked_update", reason=REASON, versions=">=0.16")
def tensor_masked_update(states: torch.Tensor, idx: torch.Tensor, new_states: torch.Tensor) -> None:
    """``states[idx] = new_states``, rows with an index of -1 left out; states of 2 to 4 dimensions."""
    assert all(t.is_cuda for t in (states, idx, new_states))
    assert idx.ndim == 1
    assert states.shape[1:] == new_states.shape[1:], "State dimensions must match"
    assert states.ndim in (2, 3, 4), "Only 2D, 3D, and 4D tensors are supported"
    wanted = idx >= 0
    states[idx[wanted].long()] = new_states[wanted].to(states.dtype)


@replace(
    "megatron.core.inference.contexts.fused_kv_append_kernel:triton_append_key_value_cache",
    reason=REASON,
    versions=">=0.15",
)
def append_to_cache(
    layer_number: int,
    key: torch.Tensor,
    value: torch.Tensor,
    memory_buffer: torch.Tensor,
    padded_active_token_count: int,
    token_to_block_idx: torch.Tensor,
    token_to_local_position_within_kv_block: torch.Tensor,
) -> None:
    """Write the first tokens of ``key`` and ``value [tokens, 1, heads, channels]`` into the paged cache.

    ``memory_buffer [2, layers, blocks, positions, heads, channels]``; block and position of each token are
    given.
    """
    count = padded_active_token_count
    place = (token_to_block_idx[:count].long(), token_to_local_position_within_kv_block[:count].long())
    for cache, new in zip(memory_buffer[:, layer_number], (key, value), strict=True):
        cache[place] = new[:count].squeeze(1).to(cache.dtype)
