"""Muon, whose matrix iteration Megatron takes from a package that is not on PyPI in the form it needs."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from mindspeed_ms.patches.stand_ins import Provided, provide

REASON = "--optimizer muon is refused without it"


def _top(module: ModuleType) -> None:
    module.orthogonalized_optimizers = import_module("emerging_optimizers.orthogonalized_optimizers")


def _optimizers(module: ModuleType) -> None:
    from mindspeed_ms.patches import emerging_optimizers

    module.OrthogonalizedOptimizer = emerging_optimizers.OrthogonalizedOptimizer
    module.get_muon_scale_factor = emerging_optimizers.get_muon_scale_factor


def _utils(module: ModuleType) -> None:
    from mindspeed_ms.patches import emerging_optimizers

    module.newton_schulz_tp = emerging_optimizers.newton_schulz_tp


provide(Provided("emerging_optimizers", _top, REASON, package=True))
provide(Provided("emerging_optimizers.orthogonalized_optimizers", _optimizers, REASON, package=True))
provide(Provided("emerging_optimizers.orthogonalized_optimizers.muon_utils", _utils, REASON))
