"""Megatron's optimizers: a checkpoint of one expert parallel size loads under another."""

from collections.abc import Callable
from typing import Any

from mindspeed_ms.patches.registry import around

MULTIPLIERS = ("wd_mult", "lr_mult", "is_decoupled_lr")
"""What tells the parameter groups of one optimizer apart, whether or not experts have one of their own."""


@around(
    "megatron.core.optimizer.optimizer:ChainedOptimizer.load_state_dict",
    reason="with expert parallelism experts have an optimizer of their own, and checkpoints another layout",
)
def load_state_dict(original: Callable[..., None], self: Any, state_dict: Any) -> None:
    """Megatron's loading, after the state was laid out for as many optimizers as there are.

    Tensors are found by parameter name whatever the layout. What is no tensor (hyperparameters, steps, scale)
    was saved for the other layout and lies beside the state that this one asked for.
    """
    original(self, _laid_out(self, state_dict) if isinstance(state_dict, dict) else state_dict)


def _laid_out(chain: Any, state: dict[Any, Any]) -> dict[Any, Any]:
    parts = {key: value for key, value in state.items() if isinstance(key, int)}
    whole = {key: value for key, value in state.items() if not isinstance(key, int)}
    if not parts or not whole:
        return state
    optimizers = chain.chained_optimizers
    if len(optimizers) == 1:
        for part in parts.values():
            _complete(whole, part, optimizers[0].param_groups)
        return whole
    for index, part in parts.items():
        _complete(part, whole, optimizers[index].param_groups)
    return parts


def _complete(state: dict[Any, Any], saved: dict[Any, Any], groups: list[dict[str, Any]]) -> None:
    """Put into ``state``, at any depth, what only ``saved`` has. ``groups``: of the optimizer that loads."""
    for key, value in saved.items():
        if key == "param_groups":
            wanted = state.setdefault(key, [{} for _ in groups])
            for group, own in zip(wanted, groups, strict=True):
                _complete_group(group, own, value)
        elif isinstance(value, dict):
            _complete(state.setdefault(key, {}), value, groups)
        else:
            state.setdefault(key, value)


def _complete_group(group: dict[str, Any], own: dict[str, Any], saved: list[dict[str, Any]]) -> None:
    """Settings from the saved group with ``own`` multipliers; which group holds experts differs by layout."""
    kind = _multipliers(own)
    for other in saved:
        if _multipliers(other) == kind:
            settings = {key: value for key, value in other.items() if key != "params"}
            group.update({**settings, "is_expert_parallel": own["is_expert_parallel"], **group})
            return


def _multipliers(group: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(group.get(name, group.get(f"pre_{name}")) for name in MULTIPLIERS)
