"""Checkpoints: what Megatron's own saving and loading leave out."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from mindspeed_ms.patches.registry import around, replace
from mindspeed_ms.process_queue import served_queue

_WRITER = "megatron.core.dist_checkpointing.strategies.filesystem_async"


@around(
    "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.load_state_dict",
    reason="it copies into views of float32 parameters, which autograd forbids outside no_grad",
)
def load_state_dict(original: Callable[..., None], self: Any, state_dict: Any) -> None:
    """Megatron's own loading, without autograd looking on."""
    with torch.no_grad():
        original(self, state_dict)


@replace(
    f"{_WRITER}:_get_write_results_queue",
    reason="the process that it starts imports the script again, and outlives a rank that is killed",
)
def _get_write_results_queue() -> Any:
    """Megatron's queue between the processes that write a checkpoint, served by the rank."""
    writer = sys.modules[_WRITER]
    if writer._results_queue is None:
        writer._results_queue = served_queue()
    return writer._results_queue
