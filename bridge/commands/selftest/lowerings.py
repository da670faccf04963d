"""Group "lowerings": aten operators on MindSpore, forward and backward, against torch in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from mindspeed_ms import _runtime
from mindspeed_ms.commands.selftest.kernels import backward, compare, exact, routes, tensors
from mindspeed_ms.commands.selftest.rows import FLOATS, Case, Check
from mindspeed_ms.ops.registry import Inputs, Row, inputs, table
from mindspeed_ms.routes import coverage

Tensor = torch.Tensor


def results(
    call: Callable[[Inputs], Any], given: Inputs, differentiate: bool
) -> tuple[list[Tensor], list[Tensor | None]]:
    """All results of a call and, if asked for, the gradients of the inputs."""
    leaves = Inputs(*(t.detach().requires_grad_(differentiate and t.is_floating_point()) for t in given))
    found = tensors(call(leaves))
    outputs = [t for t in found if t.requires_grad]
    if not outputs:
        return found, []
    return found, backward(outputs, [t for t in leaves if t.requires_grad])


def _case(entry: Row, dtype: torch.dtype) -> Case:
    def run(check: Check) -> None:
        given = inputs(16, dtype)
        lent = Inputs(*(t.to("npu") for t in given))
        differentiate = True
        try:
            expected = results(entry.sample, Inputs(*map(exact, given)), True)
        except (RuntimeError, NotImplementedError):  # torch has no gradient of it
            differentiate = False
            expected = results(entry.sample, Inputs(*map(exact, given)), False)
        coverage.reset()
        found = results(entry.sample, lent, differentiate)
        torch.cuda.synchronize()
        computed = routes(check)
        if _runtime.on_ascend():
            names = {f"aten::{overload.name}" for overload in entry.overloads}
            why = check.note or "not counted"
            check.require(bool(names & computed), f"MindSpore did not compute it ({why})")
        compare(check, dtype, found, expected)

    return Case(f"{entry.name} {str(dtype).removeprefix('torch.')}", run)


def cases(group: str) -> Iterator[Case]:
    """Every row of the table in three dtypes, or in those that it has on this target."""
    _runtime.ensure_initialized()  # fills the table
    for entry in table.values():
        usable = entry.mindspore.usable if entry.mindspore else ()
        floats = tuple(dtype for dtype in FLOATS if dtype in usable)
        for dtype in floats or usable:
            yield _case(entry, dtype)
