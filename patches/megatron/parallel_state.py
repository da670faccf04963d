"""Megatron's parallel groups: each is known to MindSpore by name and ranks as long as it lives."""

from collections.abc import Callable
from typing import Any

from mindspeed_ms.patches.registry import around, replace


@around(
    "megatron.core.parallel_state:initialize_model_parallel",
    reason="MindSpore's communication operators take groups by name: every Megatron group gets one",
)
def initialize_model_parallel(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Megatron makes its groups, then MindSpore learns of them."""
    from mindspeed_ms.comm import groups

    original(*args, **kwargs)
    groups.adopt_all()


@around(
    "megatron.core.parallel_state:destroy_model_parallel",
    reason="MindSpore's side of the groups goes with Megatron's",
)
def destroy_model_parallel(original: Callable[..., None]) -> None:
    """MindSpore forgets the groups, then Megatron does."""
    from mindspeed_ms.comm import groups

    groups.release_all()
    original()


@around(
    "megatron.core.hyper_comm_grid:HyperCommGrid.create_pg",
    reason="groups made by a grid are Megatron groups too",
    versions=">=0.14",
)
def create_pg(original: Callable[..., Any], self: Any, dims: Any, **options: Any) -> Any:
    """The grid makes the group of this rank, then MindSpore learns of it."""
    from mindspeed_ms.comm import groups

    group = original(self, dims, **options)
    groups.adopt([group])
    return group


@replace(
    "megatron.core.parallel_state:get_nccl_options",
    reason="it makes options of torch's NCCL groups, which a torch without NCCL does not have",
)
def get_nccl_options(pg_name: str, nccl_comm_cfgs: dict[str, Any]) -> None:
    """Groups of this backend take no options: stream priorities and channel counts are NCCL's."""
