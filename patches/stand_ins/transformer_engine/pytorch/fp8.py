"""``transformer_engine.pytorch.fp8``: fp8 is never on."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any


class FP8GlobalStateManager:
    """fp8 is never on."""

    @staticmethod
    def is_fp8_enabled() -> bool:
        """False."""
        return False


def fp8_autocast(enabled: bool = True, **options: Any) -> Any:
    """Context that changes nothing when ``enabled`` is false; NotImplementedError otherwise."""
    if enabled:
        raise NotImplementedError("fp8 needs Transformer Engine on hardware that has it: use --bf16 instead")
    return nullcontext()


def fp8_model_init(enabled: bool = True, **options: Any) -> Any:
    """Context that changes nothing when ``enabled`` is false; NotImplementedError otherwise."""
    return fp8_autocast(enabled, **options)


def check_fp8_support(*_args: Any) -> tuple[bool, str]:
    """Transformer Engine's answer of a device without it: False, and why."""
    return False, "fp8 needs hardware that has it"


check_mxfp8_support = check_nvfp4_support = check_fp8_block_scaling_support = check_fp8_support
