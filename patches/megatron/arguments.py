"""Megatron-LM's command line: flags that mean something else here are settled before Megatron checks them."""

import argparse
from collections.abc import Callable
from typing import Any

from mindspeed_ms.patches import flags
from mindspeed_ms.patches.megatron import hugging_face
from mindspeed_ms.patches.registry import around


@around(
    "megatron.training.arguments:validate_args",
    reason="some flags tune CUDA, NCCL or Transformer Engine: each has no effect here, or is refused by name",
)
def validate_args(
    original: Callable[..., Any], args: argparse.Namespace, defaults: dict[str, Any] | None = None
) -> Any:
    """What a Hugging Face model sets and the table of flags first, then Megatron's own checks."""
    hugging_face.fill_arguments(args)
    flags.apply(args)
    return original(args, {} if defaults is None else defaults)
