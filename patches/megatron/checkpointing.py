"""Checkpoints: what Megatron's own loading leaves out."""

from collections.abc import Callable
from typing import Any

import torch
from mindspeed_ms.patches.registry import around


@around(
    "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.load_state_dict",
    reason="it copies into views of float32 parameters, which autograd forbids outside no_grad",
)
def load_state_dict(original: Callable[..., None], self: Any, state_dict: Any) -> None:
    """Megatron's own loading, without autograd looking on."""
    with torch.no_grad():
        original(self, state_dict)
