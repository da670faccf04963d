"""Recomputed activations: parameters among the results, memory handed on, recompute without fp8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mindspeed_ms import _runtime
from mindspeed_ms.patches.registry import around, replace


@around(
    "megatron.core.tensor_parallel.random:checkpoint",
    reason="a parameter that the function returns (an MLP its bias) would get the checkpoint as its grad_fn, "
    "and backward would recompute without end",
)
def checkpoint(
    original: Callable[..., Any],
    function: Callable[..., Any],
    distribute_saved_activations: bool,
    *args: Any,
) -> Any:
    """Megatron's own, of a function that returns aliases of its parameters."""

    def without_parameters(*inputs: Any) -> Any:
        outputs = function(*inputs)
        return tuple(map(_alias, outputs)) if isinstance(outputs, tuple) else _alias(outputs)

    return original(without_parameters, distribute_saved_activations, *args)


def _alias(output: Any) -> Any:
    """For a leaf that takes a gradient, a tensor over its memory; the recomputed one hands gradients on."""
    if not (isinstance(output, torch.Tensor) and output.is_leaf and output.requires_grad):
        return output
    return output.view_as(output) if torch.is_grad_enabled() else output.detach()


@around(
    "megatron.core.tensor_parallel.random:CheckpointWithoutOutput.__init__",
    reason="its default, fp8=False, counts as fp8, and then it calls Transformer Engine",
    versions=">=0.13",
)
def checkpoint_without_output(original: Callable[..., None], self: Any, fp8: Any = False) -> None:
    """Recompute without fp8 state, which no run has here."""
    original(self, None)


@replace(
    "megatron.core.tensor_parallel.random:_get_share_storage",
    reason="it compiles C++ at the first backward, waits for ever for a compiler that was killed, and gives "
    "npu storages an owner that their device does not know",
    versions=">=0.18",
)
def share_storage() -> Callable[[torch.Tensor, torch.Tensor], None]:
    """What gives the storage of its first argument the memory of its second, without a copy."""
    return _runtime.share_storage
