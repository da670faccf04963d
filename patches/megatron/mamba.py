"""Mamba layers: Megatron takes their operators from ``mamba_ssm`` and ``causal_conv1d``, CUDA packages."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from mindspeed_ms.patches import mamba
from mindspeed_ms.patches.stand_ins import Provided, provide

REASON = "Megatron's Mamba layers refuse to be built without it"


def _names(*names: str, **values: str) -> Callable[[ModuleType], None]:
    def fill(module: ModuleType) -> None:
        for name in names:
            setattr(module, name, getattr(mamba, name))
        for name, value in values.items():
            setattr(module, name, value)

    return fill


MODULES = {
    "causal_conv1d": _names("causal_conv1d_fn", "causal_conv1d_update", __version__=mamba.CONV_VERSION),
    "causal_conv1d.causal_conv1d_varlen": _names("causal_conv1d_varlen_states"),
    "mamba_ssm": _names(__version__=mamba.MAMBA_VERSION),
    "mamba_ssm.ops": _names(),
    "mamba_ssm.ops.triton": _names(),
    "mamba_ssm.ops.triton.layernorm_gated": _names("RMSNorm"),
    "mamba_ssm.ops.triton.selective_state_update": _names("selective_state_update"),
    "mamba_ssm.ops.triton.ssd_combined": _names(
        "mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined"
    ),
}
for _name, _fill in MODULES.items():
    provide(Provided(_name, _fill, REASON, package=any(other.startswith(f"{_name}.") for other in MODULES)))
