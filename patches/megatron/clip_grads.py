"""Norm and clipping of gradients, which Megatron takes from Apex or TE, else does tensor by tensor."""

from __future__ import annotations

from typing import Any

import torch
from mindspeed_ms.patches.registry import around
from mindspeed_ms.routes import takes


@around(
    "megatron.core.utils:local_multi_tensor_l2_norm",
    reason="the norm of all gradients is one pass, without a tensor and a synchronisation for each",
)
def multi_tensor_l2_norm(
    original: Any, chunk_size: int, noop_flag: Any, tensor_lists: Any, per_tensor: bool, *args: Any
) -> tuple[torch.Tensor, None]:
    """Euclidean norm of all tensors together as a float32 tensor of one element, as amp_C gives it."""
    from mindspeed_ms.kernels import norm_of

    tensors = [tensor for tensors in tensor_lists for tensor in tensors]
    if per_tensor or not tensors or not takes(*tensors):
        return original(chunk_size, noop_flag, tensor_lists, per_tensor, *args)
    return norm_of(tensors).float().view(1), None


@around(
    "megatron.core.utils:local_multi_tensor_scale",
    reason="clipping is one pass in place, without a temporary for each gradient",
)
def multi_tensor_scale(
    original: Any, chunk_size: int, noop_flag: Any, tensor_lists: Any, scale: float
) -> None:
    """Second list = first list * scale; they may be the same tensors."""
    from mindspeed_ms.kernels import scale_into

    sources, targets = tensor_lists
    plain = not torch.is_tensor(scale) and len(sources) == len(targets)
    if not plain or not takes(*sources, *targets):
        return original(chunk_size, noop_flag, tensor_lists, scale)
    scale_into(targets, sources, scale)
