"""Megatron's data parallel wrappers: what its own training loop calls and one of them does not take."""

from typing import Any

from mindspeed_ms.patches.registry import replace


@replace(
    "megatron.core.distributed.data_parallel_base:_BaseDataParallel.finish_grad_sync",
    reason="0.16 calls it with an argument that the base class, and so torch's FSDP2, does not take",
    versions=">=0.16",
)
def finish_grad_sync(self: Any, force_all_reduce: bool | None = False) -> None:
    """Nothing to finish: FSDP2 reduces gradients while it computes them."""
