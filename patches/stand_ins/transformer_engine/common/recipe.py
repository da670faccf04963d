"""``transformer_engine.common.recipe``: fp8 recipes, refused."""

from types import SimpleNamespace
from typing import Any

Format = SimpleNamespace(E4M3="e4m3", HYBRID="hybrid")


class DelayedScaling:
    """fp8 recipe: refused when constructed."""

    def __init__(self, *_args: Any, **_options: Any) -> None:
        raise NotImplementedError("fp8 needs Transformer Engine on hardware that has it: use --bf16 instead")
