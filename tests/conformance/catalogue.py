"""torch's OpInfo database: operators by unique name, their variants and samples. Knows nothing of devices."""

from __future__ import annotations

import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import OpInfo, SampleInput

SEED = 20


def name_of(op: OpInfo) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


def operators() -> dict[str, OpInfo]:
    """The database by unique name."""
    return {name_of(op): op for op in op_db}


def variants_of(op: OpInfo, dtype: torch.dtype) -> list[str]:
    """The variants that the database offers on CPU for `dtype`."""
    if dtype not in op.supported_dtypes("cpu"):
        return []
    offered = ["forward"]
    if op.supports_autograd and dtype in op.supported_backward_dtypes("cpu"):
        offered.append("backward")
    if op.inplace_variant is not None:
        offered.append("inplace")
    if op.supports_out:
        offered.append("out")
    return offered


def samples_of(op: OpInfo, dtype: torch.dtype, limit: int, requires_grad: bool) -> list[SampleInput]:
    """At most `limit` samples of the database, evenly spread; all of them for limit 0."""
    torch.manual_seed(SEED)
    samples = list(op.sample_inputs("cpu", dtype, requires_grad=requires_grad))
    if 0 < limit < len(samples):
        samples = [samples[i * len(samples) // limit] for i in range(limit)]
    return samples
