"""Every row of the table: its sample on each kernel that it offers here, in each dtype, against float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mindspeed_ms.patch  # noqa: F401 - switches the device on
import pytest
import torch
from mindspeed_ms import _runtime
from mindspeed_ms.ops import auto, registry
from mindspeed_ms.ops.calibrate import TOLERANCE
from mindspeed_ms.routes import coverage

_runtime.ensure_initialized()  # fills the table
SIDE = 16
OFFERS = [
    (name, route, dtype)
    for name, entry in registry.table.items()
    for route, kernel in entry.kernels().items()
    for dtype in kernel.usable
]


@pytest.fixture
def tables() -> Iterator[None]:
    yield
    for entry in registry.table.values():
        for dtype in {dtype for kernel in entry.kernels().values() for dtype in kernel.usable}:
            entry.handle.set_auto(dtype, "host", "host", 0)
    auto.apply(registry.table)


def results(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [t for t in value if t is not None]


def label(offer: Any) -> str:
    return str(offer).removeprefix("torch.").removeprefix("aten::")


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(("name", "route", "dtype"), OFFERS, ids=label)
def test_sample_against_float64(name: str, route: str, dtype: torch.dtype) -> None:
    entry = registry.table[name]
    given = registry.inputs(SIDE, dtype)
    exact = entry.sample(registry.Inputs(*(t.double() if t.is_floating_point() else t for t in given)))
    like = entry.sample(given)
    entry.handle.set_auto(dtype, route, route, 0)
    coverage.reset()
    found = entry.sample(registry.Inputs(*(t.to("npu") for t in given)))
    names = {f"aten::{overload.name}" for overload in entry.overloads}
    taken = {row["route"] for row in coverage.snapshot() if row["op"] in names}
    assert taken == {route}, "the sample does not meet the kernel"
    limit = max(TOLERANCE.get(dtype, 0), 2 * (entry.kernels()[route].error(dtype) or 0))
    for ours, wanted, theirs in zip(results(found), results(exact), results(like), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        if not ours.is_floating_point():
            assert ours.tolist() == theirs.tolist()
            continue
        wanted = wanted.double()
        error = (ours.cpu().double() - wanted).abs().max()
        assert error <= limit * wanted.abs().max()


FENCES = [
    (name, route, fence, dtype)
    for name, entry in registry.table.items()
    for route, kernel in entry.kernels().items()
    for fence in kernel.fences
    for dtype in fence.dtypes
]
LOOSE = 4
"""How many times what shows a fence may allow: MindSpore's kernels differ with the instruction set."""


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(("name", "route", "fence", "dtype"), FENCES, ids=label)
def test_a_fence_has_a_cause(name: str, route: str, fence: registry.Fence, dtype: torch.dtype) -> None:
    entry = registry.table[name]
    given = registry.inputs_between(*fence.at, SIDE, dtype)
    exact = entry.sample(registry.Inputs(*(t.double() if t.is_floating_point() else t for t in given)))
    torchs = entry.sample(given).double()
    entry.handle.set_auto(dtype, route, route, 0)
    ours = entry.sample(registry.Inputs(*(t.to("npu") for t in given))).cpu().double()
    scale = exact.abs().max()
    error = (ours - exact).abs().max() / scale
    assert fence.error is not None, "no route takes it: give this test a way to call it"
    assert fence.error / LOOSE < error <= fence.error
    assert error > 4 * (torchs - exact).abs().max() / scale, "no worse than torch's own kernel"


def test_a_row_without_a_sample_cannot_be_written() -> None:
    with pytest.raises(TypeError, match="sample"):
        registry.row("aten::hypot", cpu=registry.Kernel(torch.ceil, registry.FLOATS))


def test_a_row_without_a_kernel_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="a row without a kernel"):
        registry.row("aten::hypot", lambda s: torch.hypot(s.x, s.y))


def test_every_operator_of_the_table_of_routes_has_a_row() -> None:
    assert {name for name, entry in registry.table.items() if entry.handle is None} == {
        name for name, entry in registry.table.items() if not entry.kernels()
    }
