"""Checkpoints: what Megatron's own saving and loading leave out."""

import sys
from collections.abc import Callable
from multiprocessing import parent_process
from typing import Any

import torch
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


@around(
    "megatron.core.dist_checkpointing.strategies.torch:TorchDistLoadShardedStrategy.load",
    reason="Transformer Engine gave more of its modules an extra state from release to release",
)
def load(
    original: Callable[..., Any],
    self: Any,
    sharded_state_dict: Any,
    checkpoint_dir: Any,
    *options: Any,
    **named: Any,
) -> Any:
    """Megatron's own loading, not asking for extra states that the checkpoint was saved without."""
    from megatron.core.dist_checkpointing.dict_utils import extract_matching_values
    from megatron.core.dist_checkpointing.mapping import ShardedObject
    from torch.distributed.checkpoint import FileSystemReader

    stored = FileSystemReader(checkpoint_dir).read_metadata().state_dict_metadata

    def absent(value: Any) -> bool:
        extra = isinstance(value, ShardedObject) and value.key.endswith("._extra_state")
        return extra and value.unique_key not in stored

    _, present = extract_matching_values(sharded_state_dict, absent)
    return original(self, present, checkpoint_dir, *options, **named)


@around(
    "megatron.core.optimizer.optimizer:ChainedOptimizer.state_dict",
    reason="loading a checkpoint of FSDP2 (torch_dcp) calls it with is_loading, which it does not take",
)
def state_dict(original: Callable[..., Any], self: Any, is_loading: bool = False) -> Any:
    """Megatron's own state; for loading, with the optimizer states that a checkpoint is read into.

    What is not there is not read, so FusedAdam's number of steps, too, is made.
    """
    if is_loading:
        for optimizer in self.chained_optimizers:
            optimizer.init_state_fn(optimizer.optimizer, optimizer.config)
            for group in optimizer.optimizer.param_groups:
                if group["params"] and "bias_correction" in group:
                    group.setdefault("step", 0)
    return original(self)


QUEUE = "the process that it starts imports the script again, and outlives a rank that is killed"


@replace(f"{_WRITER}:_get_write_results_queue", reason=QUEUE, versions="<0.17")
@replace(f"{_WRITER}:get_write_results_queue", reason=QUEUE, versions=">=0.17")
def get_write_results_queue(mp_mode: str = "spawn") -> Any:
    """Megatron's queue between the processes that write a checkpoint, served by the rank."""
    from mindspeed_ms.comm.child_processes import served_queue

    writer: Any = sys.modules[_WRITER]
    if writer._results_queue is None:
        writer._results_queue = served_queue()
    return writer._results_queue


@around(
    f"{_WRITER}:FileSystemWriterAsync.write_preloaded_data",
    reason="a forked writer waits for its rank for ever when that is killed while it writes",
)
def write_preloaded_data(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Megatron's writing of one file, in a process that ends with the one which wants it written."""
    from mindspeed_ms.comm.child_processes import end_with_parent

    if parent_process() is not None:
        end_with_parent()
    return original(*args, **kwargs)


_CALLER = "megatron.core.dist_checkpointing.strategies.async_utils:PersistentAsyncCaller"
LOST = "a rank waits for its persistent checkpoint worker for ever when that has ended"
ADVICE = (
    "the checkpoint that it was writing is lost, and its own last words above say why; "
    "without --async-save the rank writes by itself"
)


@around(f"{_CALLER}.__init__", reason=LOST, versions="<0.17")
def init(original: Callable[..., None], self: Any) -> None:
    """Megatron's own caller, which is told when its worker has ended."""
    from mindspeed_ms.comm.child_processes import wait_while_alive

    original(self)
    wait_while_alive(lambda: self.process, [self.queue, self.preload_q, self.comp_q], ADVICE)


@around(f"{_CALLER}._get_process", reason=LOST, versions=">=0.17")
def get_process(original: Callable[..., Any], cls: Any, *options: Any, **named: Any) -> Any:
    """Megatron's own worker, whose rank is told when it has ended."""
    from mindspeed_ms.comm.child_processes import wait_while_alive

    is_new = cls._persistent_process is None
    worker = original(cls, *options, **named)
    if is_new:
        queues = [cls._persistent_queue, cls._persistent_preload_q, cls._persistent_comp_q]
        wait_while_alive(lambda: worker, queues, ADVICE)
    return worker


@around(f"{_CALLER}.close", reason=LOST)
def close(original: Callable[..., None], self: Any, *options: Any, **named: Any) -> None:
    """Megatron's own end of the worker, unless it has ended before."""
    if self.process is not None and self.process.exitcode is not None:
        self.process = None
    original(self, *options, **named)


@around(f"{_CALLER}.async_loop", reason="the worker waits for its rank for ever when that is killed")
def async_loop(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Megatron's own worker, in a process that ends with the rank it works for."""
    from mindspeed_ms.comm.child_processes import end_with_parent

    end_with_parent()
    original(*args, **kwargs)
