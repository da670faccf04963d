"""Megatron's jit_fuser: torch.compile generates CUDA (triton) or CPU code, and neither is for this device."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from mindspeed_ms.patches.registry import factory, replace


def _eager(model: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
    """Decorator with torch.compile's calling convention that leaves the function as it is."""
    return model if model is not None else lambda function: function


def _compiled_before_us() -> bool:
    """Whether a loaded Megatron module already holds functions that jit_fuser has compiled."""
    return any(
        hasattr(value, "_torchdynamo_orig_callable")
        for name, module in list(sys.modules.items())
        if name.startswith("megatron.")
        for value in list(vars(module).values())
    )


@factory("megatron.core.jit:jit_fuser", reason="torch.compile has no code generator for device npu")
def jit_fuser(original: Any) -> Callable[..., Any]:
    """Functions decorated from now on stay eager; those compiled before are told to run eagerly."""
    if _compiled_before_us():
        torch.compiler.set_stance("force_eager")
        warnings.warn(
            "Megatron was imported before mindspeed_ms.patch and has compiled functions: torch.compile runs "
            "eagerly in this process; import mindspeed_ms.patch first",
            stacklevel=2,
        )
    return _eager


@replace(
    "megatron.core.jit:enable_jit_fuser",
    reason="it would set jit_fuser back to torch.compile",
    versions=">=0.16",
)
def enable_jit_fuser() -> None:
    """Leave jit_fuser eager."""
