"""Checkpoints: what Megatron's own saving and loading leave out."""

import sys
from collections.abc import Callable
from multiprocessing import parent_process
from typing import Any

import torch
from mindspeed_ms.child_processes import end_with_parent, served_queue
from mindspeed_ms.patches.registry import around, replace

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


@around(
    f"{_WRITER}:FileSystemWriterAsync.write_preloaded_data",
    reason="a forked writer waits for its rank for ever when that is killed while it writes",
)
def write_preloaded_data(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Megatron's writing of one file, in a process that ends with the one which wants it written."""
    if parent_process() is not None:
        end_with_parent()
    original(*args, **kwargs)
