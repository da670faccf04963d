"""Sample checks of torch's OpInfo database that do not pass on device npu, each with its reason.

``python -m tests.conformance.opinfo`` fails for a failure that is not listed here, for an exception that no
longer fails, and if the exceptions are more than LIMIT of the sample checks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mindspeed_ms.config import settings

LIMIT = 0.01


@dataclass(frozen=True)
class Known:
    """Failures of operators matching `op` with an error matching `error`."""

    op: str  # regular expression, whole name
    error: str  # regular expression, anywhere in the message
    reason: str
    variants: tuple[str, ...] = ()  # all if empty
    dtypes: tuple[str, ...] = ()  # all if empty
    targets: tuple[str, ...] = ("CPU", "Ascend")

    def here(self) -> bool:
        """Whether it is one of this process's target."""
        return settings.TARGET.value in self.targets

    def covers(self, op: str, dtype: str, variant: str, error: str) -> bool:
        return (
            self.here()
            and re.fullmatch(self.op, op) is not None
            and re.search(self.error, error) is not None
            and (not self.variants or variant in self.variants)
            and (not self.dtypes or dtype in self.dtypes)
        )


EXCEPTIONS: tuple[Known, ...] = (
    Known(
        op=r"sparse\..*|.*to_sparse.*",
        error=r"^NotImplementedError: .*[Ss]parse",
        reason="device npu has strided tensors only, as Ascend has; the error says to use dense ones",
    ),
    Known(
        op=r"tensor_split",
        error=r"tensor_split expected tensor_indices_or_sections to be on cpu",
        reason="torch wants this argument on the CPU whatever the device is; the runner moves all arguments",
    ),
    Known(
        op=r"nn\.functional\.linear_cross_entropy.*",
        error=r"^AssertionError: result \d+: (Tensor-likes|Scalars) are not close",
        reason="torch chooses the accumulation dtype by device (_resolve_auto_acc_dtype): float32 on CPU",
        dtypes=("bfloat16", "float16"),
    ),
    Known(
        op=r"nn\.functional\.scaled_dot_product_attention",
        error=r"Mismatched elements: [1-5] / 384 .* difference: 1\.[0-9]+e-05",
        reason="CPU takes its flash kernel, npu the composite; CPU with SDPBackend.MATH equals npu",
        dtypes=("float32",),
    ),
    Known(
        op=r"nonzero",
        error=r"\(result, shared with, strides, offset\) is",
        reason="as_tuple gives views of one matrix: on Ascend its rows are contiguous, on CPU its columns",
        targets=("Ascend",),
    ),
    Known(
        op=r"narrow_copy|nn\.functional\.avg_pool3d",
        error=r"Tensor-likes are not (close|equal)",
        reason="torch's CPU kernel fills a strided out as if contiguous; from Ascend it gets a dense one",
        variants=("out",),
        targets=("Ascend",),
    ),
    Known(
        op=r"native_layer_norm",
        error=r"result 1: The values for attribute 'dtype' do not match: torch\.float32",
        reason="results without elements are torch's meta kernel's, whose statistics are float32 as on CUDA",
        dtypes=("bfloat16", "float16"),
        targets=("Ascend",),
    ),
    Known(
        op=r"svd_lowrank",
        error=r"result \d: other shape, dtype or strides",
        reason="a view of a result of the host's, whose columns are contiguous on CPU: the device's rows are",
        targets=("Ascend",),
    ),
    Known(
        op=r"addbmm",
        error=r"Mismatched elements: [1-2] / 50 ",
        reason="327 is 1.4 units in the last place off; CPU adds up a strided out in another order: 0.6 off",
        variants=("out",),
        dtypes=("float32",),
        targets=("Ascend",),
    ),
    Known(
        op=r"nn\.functional\.soft_margin_loss",
        error=r"Mismatched elements: 2 / 125 ",
        reason="exp overflows to NaN on both sides, so float64 is no judge of the 1.6 units",
        variants=("backward",),
        dtypes=("float16",),
        targets=("Ascend",),
    ),
    Known(
        op=r"addcmul|masked\.prod",
        error=r"Scalars are not close! Expected -7\.25|Mismatched elements: 1 / 12 .* difference: 2\.0 at",
        reason="2.5 and 0.7 units in the last place off, from roundings between operators; CPU 0.5 and 0.3",
        variants=("backward",),
        dtypes=("float16",),
        targets=("Ascend",),
    ),
)


def excuse(op: str, dtype: str, variant: str, error: str) -> Known | None:
    """The exception that covers a failure, if one does."""
    return next((e for e in EXCEPTIONS if e.covers(op, dtype, variant, error)), None)
