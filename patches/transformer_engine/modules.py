"""The modules of the stand-in, declared: what each name of Transformer Engine is here."""

from __future__ import annotations

from contextlib import nullcontext
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

from mindspeed_ms.patches.stand_ins import Provided, provide
from mindspeed_ms.patches.transformer_engine import VERSION

REASON = "Megatron's default layer spec is made of its modules; ours have its parameter names"


def _no_fp8(*_args: Any, **_options: Any) -> None:
    raise NotImplementedError("fp8 needs Transformer Engine on hardware that has it: use --bf16 instead")


class FP8GlobalStateManager:
    """fp8 is never on."""

    @staticmethod
    def is_fp8_enabled() -> bool:
        """False."""
        return False


def fp8_autocast(enabled: bool = True, **options: Any) -> Any:
    """Context that changes nothing when ``enabled`` is false; NotImplementedError otherwise."""
    return _no_fp8() if enabled else nullcontext()


def _no_fp8_hardware(*_args: Any) -> tuple[bool, str]:
    """Transformer Engine's answer of a device without it: False, and why."""
    return False, "fp8 needs hardware that has it"


class FusibleOperation:
    """An operation of ``te.pytorch.ops``: refused when constructed."""

    def __init__(self, *_args: Any, **_options: Any) -> None:
        raise NotImplementedError(
            "Transformer Engine's operation fuser is not implemented: drop --use-transformer-engine-op-fuser"
        )


OPERATIONS = (
    *("FusibleOperation", "Sequential", "ReGLU", "SiLU", "LayerNorm", "RMSNorm", "Linear", "BasicLinear"),
    *("Bias", "AllReduce", "ReduceScatter"),
)


class QuantizedTensor:
    """A parameter held in fp8: no tensor is one."""


class DelayedScaling:
    """fp8 recipe: refused when constructed."""

    __init__ = _no_fp8


class CudaRNGStatesTracker:
    """Transformer Engine's random-state tracker: refused when constructed."""

    def __init__(self) -> None:
        raise NotImplementedError(
            "Transformer Engine's RNG tracker serves CUDA graphs only: drop --te-rng-tracker, Megatron's own "
            "tracker draws the same numbers"
        )


def _top(module: ModuleType) -> None:
    module.__version__ = VERSION
    module.pytorch = import_module("transformer_engine.pytorch")
    module.common = import_module("transformer_engine.common")


def _common(module: ModuleType) -> None:
    module.recipe = import_module("transformer_engine.common.recipe")


def _recipe(module: ModuleType) -> None:
    module.DelayedScaling = DelayedScaling
    module.Format = SimpleNamespace(E4M3="e4m3", HYBRID="hybrid")


def _pytorch(module: ModuleType) -> None:
    from mindspeed_ms.patches.transformer_engine import activations
    from mindspeed_ms.patches.transformer_engine.attention import DotProductAttention
    from mindspeed_ms.patches.transformer_engine.linear import GroupedLinear, LayerNormLinear, Linear
    from mindspeed_ms.patches.transformer_engine.norm import LayerNorm, RMSNorm

    for shown in (DotProductAttention, GroupedLinear, LayerNorm, LayerNormLinear, Linear, RMSNorm):
        setattr(module, shown.__name__, shown)
    module.fp8_autocast = fp8_autocast
    known = {name: getattr(activations, name) for name in ("SwiGLU", "GEGLU", "GELU", "ReLU")}
    module.ops = SimpleNamespace(**dict.fromkeys(OPERATIONS, FusibleOperation), **known)
    module.fp8 = import_module("transformer_engine.pytorch.fp8")
    # Not importable: Megatron takes an importable one for a complete one, with fp8 recompute.
    module.distributed = SimpleNamespace(CudaRNGStatesTracker=CudaRNGStatesTracker)


def _attention(module: ModuleType) -> None:
    from mindspeed_ms.patches.transformer_engine.attention import DotProductAttention
    from mindspeed_ms.patches.transformer_engine.rope import apply_rotary_pos_emb

    module.DotProductAttention, module.apply_rotary_pos_emb = DotProductAttention, apply_rotary_pos_emb


def _fp8(module: ModuleType) -> None:
    module.FP8GlobalStateManager, module.fp8_autocast = FP8GlobalStateManager, fp8_autocast
    for kind in ("fp8", "mxfp8", "nvfp4", "fp8_block_scaling"):
        setattr(module, f"check_{kind}_support", _no_fp8_hardware)


def _optimizers(module: ModuleType) -> None:
    from mindspeed_ms.patches.transformer_engine.optimizers import FusedAdam, FusedSGD

    module.FusedAdam, module.FusedSGD = FusedAdam, FusedSGD


def _permutation(module: ModuleType) -> None:
    from mindspeed_ms.patches.transformer_engine import permutation

    for name in ("moe_permute", "moe_permute_with_probs", "moe_unpermute", "moe_sort_chunks_by_index"):
        setattr(module, name, getattr(permutation, name))
    module.moe_sort_chunks_by_index_with_probs = permutation.moe_sort_chunks_by_index_with_probs


def _tensor(module: ModuleType) -> None:
    module.QuantizedTensor = QuantizedTensor


def _float8_tensor(module: ModuleType) -> None:
    module.Float8Tensor = QuantizedTensor


MODULES = {
    "transformer_engine": (_top, True),
    "transformer_engine.common": (_common, True),
    "transformer_engine.common.recipe": (_recipe, False),
    "transformer_engine.pytorch": (_pytorch, True),
    "transformer_engine.pytorch.attention": (_attention, False),
    "transformer_engine.pytorch.float8_tensor": (_float8_tensor, False),
    "transformer_engine.pytorch.fp8": (_fp8, False),
    "transformer_engine.pytorch.optimizers": (_optimizers, False),
    "transformer_engine.pytorch.permutation": (_permutation, False),
    "transformer_engine.pytorch.tensor": (_tensor, True),
}


def declare() -> None:
    """Provide each of them; a second call changes nothing."""
    for name, (fill, package) in MODULES.items():
        version = VERSION if name == "transformer_engine" else ""  # of the distribution
        provide(Provided(name, fill, REASON, package, version))
