"""``transformer_engine.pytorch``: the modules and functions that Megatron takes from it."""

from types import SimpleNamespace

from . import fp8, ops  # noqa: F401
from ._linear import GroupedLinear, LayerNormLinear, Linear  # noqa: F401
from ._norm import LayerNorm, RMSNorm  # noqa: F401
from .attention import DotProductAttention  # noqa: F401
from .fp8 import fp8_autocast  # noqa: F401


class CudaRNGStatesTracker:
    """Transformer Engine's random-state tracker: refused when constructed."""

    def __init__(self) -> None:
        raise NotImplementedError(
            "Transformer Engine's RNG tracker serves CUDA graphs only: drop --te-rng-tracker, Megatron's own "
            "tracker draws the same numbers"
        )


# Not importable: Megatron takes an importable one for a complete one, with fp8 recompute.
distributed = SimpleNamespace(CudaRNGStatesTracker=CudaRNGStatesTracker)
