"""Megatron-LM's own training scripts: ``megatron.training`` and ``megatron.legacy`` of a checkout."""

from typing import Any

from mindspeed_ms.patches.registry import replace


@replace(
    "megatron.legacy.fused_kernels:load",
    reason="it looks for nvcc, and then compiles nothing that a GPT run uses",
)
def load(args: Any) -> None:
    """Compile nothing."""


@replace(
    "megatron.training.utils:get_device_arch_version",
    reason="before 10 (Blackwell) it insists on CUDA_DEVICE_MAX_CONNECTIONS=1, which orders CUDA's queues",
)
def get_device_arch_version() -> int:
    """Report an architecture whose kernels start in program order without that variable, as ours do."""
    return 10
