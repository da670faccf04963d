"""Megatron-LM's own training scripts: ``megatron.training`` and ``megatron.legacy`` of a checkout."""

from typing import Any

from mindspeed_ms.patches.registry import replace


@replace(
    "megatron.legacy.fused_kernels:load",
    reason="it looks for nvcc, and then compiles nothing that a GPT run uses",
)
def load(args: Any) -> None:
    """Compile nothing."""
