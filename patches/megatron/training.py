"""Megatron-LM's own training scripts: ``megatron.training`` and ``megatron.legacy`` of a checkout."""

from collections.abc import Callable
from typing import Any

from mindspeed_ms.patches.registry import around, replace


@replace(
    "megatron.legacy.fused_kernels:load",
    reason="it looks for nvcc, and then compiles nothing that a GPT run uses",
    versions="<0.17",
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


@around(
    "megatron.training.models.dist_utils:_ddp_wrap",
    reason="with --use-cpu-initialization it wraps a model that nobody moved to the device",
    versions=">=0.18",
)
def wrap_on_device(
    original: Callable[..., Any],
    model: Any,
    data_parallel_random_init: bool,
    ddp_config: Any,
    overlap_param_gather_with_optimizer_step: bool,
    use_megatron_fsdp: bool = False,
    use_torch_fsdp2: bool = False,
    **groups: Any,
) -> Any:
    """Chunks of the model, on the device, wrapped; torch's FSDP moves its shards itself."""
    if not use_torch_fsdp2:
        model = [chunk.cuda() for chunk in model]
    options = (data_parallel_random_init, ddp_config, overlap_param_gather_with_optimizer_step)
    return original(model, *options, use_megatron_fsdp, use_torch_fsdp2, **groups)
