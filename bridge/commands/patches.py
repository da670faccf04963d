"""``mindspeed-ms patches``: every patch of torch and Megatron, and what became of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mindspeed_ms.commands.errors import CommandError

HELP = "each patch of torch and Megatron: target, state, why"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``patches``."""
    parser.add_argument("--megatron-lm-path", metavar="DIR", help="a Megatron-LM checkout to patch instead")


def execute(options: argparse.Namespace) -> int:
    """Print the list; 1 if a patch did not fit. Raises CommandError where there is nothing to patch."""
    checkout = options.megatron_lm_path
    if checkout:
        if not Path(checkout, "megatron/core").is_dir():
            raise CommandError(f"{checkout} is no Megatron-LM checkout: it has no folder megatron/core")
        sys.path.insert(0, checkout)
    try:
        import mindspeed_ms.patch  # noqa: F401
    except ImportError as error:
        raise CommandError(str(error)) from error
    from mindspeed_ms.patches import listing

    return listing.show()
