"""A row of the report: one case, what it found, and how far that is from what it should be."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

RESULT = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Largest error of a result relative to its largest value, by dtype: a few roundings."""
GRADIENT = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}
"""The same of a gradient, which has more of them."""

SMALLEST_SCALE = 1e-2
"""Errors of results that are all smaller are relative to this: sums that cancel."""


class Failed(Exception):
    """One sentence on what a case found wrong."""


class Skipped(Exception):
    """One sentence on why a case says nothing here."""


@dataclass
class Check:
    """What a case hands its findings to; the case goes on after a wrong one.

    Attributes:
        error: the largest so far, in parts of what was allowed for it; None where nothing was compared.
        allowed: what was allowed for that one.
        wrong: a sentence for each wrong finding.
        counts: numbers to report: bytes, calls, seconds.
        note: what else there is to say.
    """

    error: float | None = None
    allowed: float | None = None
    wrong: list[str] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)
    note: str = ""

    def require(self, condition: bool, sentence: str) -> None:
        """`sentence` is what is wrong unless `condition` holds."""
        if not condition:
            self.wrong.append(sentence)

    def equal(self, what: str, found: Any, expected: Any) -> None:
        """Two values, or tensors in every element, are equal."""
        if isinstance(expected, torch.Tensor):
            self.close(what, found, expected, 0.0)
        else:
            self.require(found == expected, f"{what}: found {found!r}, expected {expected!r}")

    def close(self, what: str, found: torch.Tensor, expected: torch.Tensor, allowed: float) -> None:
        """`found`, of any device, is `expected`, on the host, up to `allowed` of its largest value."""
        if found.shape != expected.shape:
            self.wrong.append(f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
            return
        if not expected.numel():
            return
        got, want = found.detach().cpu().double(), expected.detach().double()
        finite = want.isfinite()
        scale = max(want[finite].abs().max().item() if finite.any() else 0.0, SMALLEST_SCALE)
        # Infinite values and NaN must stand where they are expected; the others may be off a little.
        off = torch.where(finite, (got - want).abs(), torch.zeros_like(want)) / scale
        off = torch.where(finite & got.isfinite() | _same_extremes(got, want), off, math.inf)
        error = off.max().item()
        if (
            self.error is None
            or self.allowed is None
            or _share(error, allowed) >= _share(self.error, self.allowed)
        ):
            self.error, self.allowed = error, allowed
        if error > allowed:
            where = [int(i) for i in torch.unravel_index(off.argmax(), off.shape)]
            at = tuple(where)
            self.wrong.append(
                f"{what}: largest error {error:.2e} of the largest value, at {where}: found "
                f"{got[at].item():.6g}, expected {want[at].item():.6g}; {int((off > allowed).sum())} of "
                f"{off.numel()} elements are off by more than {allowed:.0e}"
            )


def _share(error: float, allowed: float) -> float:
    return error / allowed if allowed else (math.inf if error else 0.0)


def _same_extremes(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    return (got.isnan() & want.isnan()) | (got == want)


@dataclass
class Case:
    """One row to be: `run` hands its findings to a Check."""

    name: str
    run: Callable[[Check], None]


@dataclass
class Row:
    """See :class:`Check`; `status` is "pass", "fail" or "skip"."""

    group: str
    name: str
    status: str
    detail: str = ""
    error: float | None = None
    allowed: float | None = None
    seconds: float = 0.0
    counts: dict[str, float] = field(default_factory=dict)
    target: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinite numbers: an error that is one stands in `detail` alone."""
        row = asdict(self)
        if self.error is not None and not math.isfinite(self.error):
            row["error"] = None
        return row


def judge(group: str, case: Case) -> tuple[Row, bool]:
    """Runs a case. Also: whether it raised, after which a device may be of no use."""
    check, started = Check(), time.perf_counter()
    status, detail, raised = "pass", "", False
    try:
        case.run(check)
        if check.wrong:
            status, detail = "fail", "; ".join(check.wrong[:4])
        else:
            detail = check.note
    except Skipped as reason:
        status, detail = "skip", str(reason)
    except Exception as error:
        # Whatever an operator raises is what this row reports, and the next one must run.
        text = " ".join(str(error).split())
        status, detail, raised = "fail", f"{type(error).__name__}: {text[:500]}", True
    seconds = round(time.perf_counter() - started, 3)
    return Row(group, case.name, status, detail, check.error, check.allowed, seconds, check.counts), raised
