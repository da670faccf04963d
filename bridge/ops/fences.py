"""MindSpore CPU kernels that are wrong, imprecise or crash, with symptom and version: kept out of the routes.

``OUT`` takes a dtype from a lowering for every route: its results are wrong. ``IMPRECISE`` keeps one out of
route auto only: right to the stated error, which is more than torch's, so that auto would not pass torch's
own tests. ``UNUSED`` documents kernels that no lowering may call; the lowerings say what they call in their
place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from mindspeed_ms.ops.registry import Lowering


class Fence(NamedTuple):
    kernel: str
    dtypes: tuple[torch.dtype, ...]
    symptom: str
    version: str = "2.10.0"


F16, F32, F64 = torch.float16, torch.float32, torch.float64

OUT: dict[str, Fence] = {}
"""Operator -> what is wrong."""

IMPRECISE: dict[str, Fence] = {
    "aten::tanh": Fence("ag.tanh", (F32, F16), "off by up to 1e-4: clamps its argument near +-5"),
    "aten::exp": Fence("ag.exp", (F32,), "relative error 5e-6, 40 units in the last place"),
    "aten::expm1": Fence("ag.expm1", (F32,), "relative error 2e-3 near zero: computed as exp(x) - 1"),
    "aten::log": Fence("ag.log", (F32,), "relative error 3e-3 next to one"),
    "aten::sigmoid": Fence("ag.sigmoid", (F32,), "relative error 2.4e-6: uses the imprecise exp"),
    "aten::silu": Fence("ag.silu", (F32,), "relative error 2.4e-6: uses the imprecise exp"),
    "aten::silu_backward": Fence("ag.sigmoid", (F32,), "uses the imprecise sigmoid"),
    "aten::_log_softmax": Fence("ag.LogSoftmax", (F32,), "absolute error 5e-6"),
    "aten::_log_softmax_backward_data": Fence("ag.exp", (F32,), "uses the imprecise exp"),
}

UNUSED: tuple[Fence, ...] = (
    Fence("Tensor.add_ sub_ mul_ div_", (F32, F16, F64), "return the sum and leave the receiver unchanged"),
    Fence("Tensor.copy_, ops.Adam into a view", (F32, F16, F64), "write nowhere, without an error"),
    Fence("mint.roll", (F32,), "ends the process"),
    Fence("ag.LayerNormExt without weight and bias", (F32,), "segmentation fault"),
    Fence(
        "ag.LayerNormGrad", (F32, F16), "wants variance + eps where its name says variance; wrong in float64"
    ),
    Fence("ag.SiLUGrad", (F32,), "relative error 0.4 near its zero; 44 ms at 256 x 512"),
    Fence("ag.LerpScalar, ag.Mm, ag.Baddbmm", (F32,), "unregistered on CPU"),
    Fence(
        "ops.LayerNorm", (F32,), "returns the variance for the reciprocal deviation; 20 times torch's time"
    ),
    Fence("ag.MatMul, ag.BatchMatMul", (torch.bfloat16,), "Unsupported data type"),
    Fence("ag.LogSoftmax, ag.LogSoftmaxGrad", (F64,), "accurate to float32 only"),
    Fence("ops.Gather with an index out of range", (F32,), "gives zeros where torch raises"),
)


def apply(table: dict[str, Lowering]) -> None:
    """Takes the dtypes fenced by ``OUT`` from their lowerings.

    Raises:
        LookupError: a fence names an operator that has no lowering.
    """
    for name in (*OUT, *IMPRECISE):
        if name not in table:
            raise LookupError(f"fences.py fences {name}, which has no lowering; remove the fence.")
    for name, fence in OUT.items():
        entry = table[name]
        entry.mindspore_dtypes = tuple(d for d in entry.mindspore_dtypes if d not in fence.dtypes)


def precise(name: str, dtype: torch.dtype) -> bool:
    """Whether MindSpore's kernel of operator `name` is as exact as route auto demands."""
    return name not in IMPRECISE or dtype not in IMPRECISE[name].dtypes
