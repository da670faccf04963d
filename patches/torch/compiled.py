"""``torch.compile`` and flex attention: neither has a code generator for device npu."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mindspeed_ms.patches.registry import around, replace


def _on_npu(graph: Any, inputs: Sequence[Any]) -> bool:
    """Whether a captured graph reads tensors of npu or makes them, under the script's name for it."""
    results = (node.meta.get("example_value", node.meta.get("val")) for node in graph.graph.nodes)
    tensors = (value for value in (*inputs, *results) if isinstance(value, torch.Tensor))
    return any(tensor.device.type in ("npu", "cuda") for tensor in tensors)


@functools.cache
def _say() -> None:
    warnings.warn(
        "torch.compile: inductor generates no code for device npu; graphs run there operator by operator",
        stacklevel=2,
    )


@around("torch._inductor.compile_fx:compile_fx", reason="inductor has no code generator for device npu")
def compile_fx(
    original: Callable[..., Any], model_: Any, example_inputs_: Sequence[Any], *args: Any, **kwargs: Any
) -> Any:
    """The graph itself where it computes on npu, said once; inductor's code elsewhere."""
    if not isinstance(model_, torch.fx.GraphModule) or not _on_npu(model_, example_inputs_):
        return original(model_, example_inputs_, *args, **kwargs)
    _say()
    return model_.forward


@around(
    "torch.nn.attention.flex_attention:_validate_device",
    reason="it knows no device of this kind; without a fused kernel torch's unfused form runs anywhere",
)
def validate_device(
    original: Callable[..., None], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> None:
    """Torch's own check, for other devices than npu."""
    if query.device.type != "npu":
        original(query, key, value)


@replace(
    "torch.utils._triton:has_triton",
    reason="torch.cuda is there, no driver of it: code for the CPU is compiled without asking triton for one",
)
def has_triton() -> bool:
    """No device here is one that triton compiles for."""
    return False
