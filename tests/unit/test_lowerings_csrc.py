"""Route csrc: our kernels behind aten operators, against torch CPU in float64; in place, where they write
directly."""

from __future__ import annotations

from collections.abc import Iterator

import mindspeed_ms.patch  # noqa: F401 - switches the device on
import pytest
import torch
from mindspeed_ms import _runtime
from mindspeed_ms.ops import auto, registry
from mindspeed_ms.routes import coverage, route

from tests.unit.test_lowerings import CASES, Case, check, make, transposed

_runtime.ensure_initialized()  # fills the table
OPERATORS = {name: entry for name, entry in registry.table.items() if entry.csrc is not None}


@pytest.fixture
def csrc_first() -> Iterator[None]:
    """Route auto with csrc wherever it has a kernel, for every dtype of it."""
    for entry in OPERATORS.values():
        for dtype in entry.csrc.usable:
            entry.handle.set_auto(dtype, "csrc", "csrc", 0)
    coverage.reset()
    yield
    for entry in OPERATORS.values():
        for dtype in entry.csrc.usable:
            entry.handle.set_auto(dtype, "host", "host", 0)
    auto.apply(registry.table)


def on_csrc() -> set[str]:
    return {row["op"] for row in coverage.snapshot() if row["route"] == "csrc"}


@pytest.mark.usefixtures("csrc_first")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values(case: Case) -> None:
    tensors = [make(kind) for kind in case.inputs]
    check(case, tensors, lambda t: t.to("npu"), "auto")
    check(case, tensors, transposed, "auto")


@pytest.mark.usefixtures("csrc_first")
def test_every_kernel_is_met_by_a_case() -> None:
    for case in CASES:
        case.run(*(make(kind).to("npu") for kind in case.inputs))
    met = on_csrc()
    missed = {
        name
        for name, entry in OPERATORS.items()
        if not any(f"aten::{overload.name}" in met for overload in entry.overloads)
    }
    assert missed == set()


IN_PLACE = {
    "add_": lambda x, y, p: x.add_(y, alpha=0.5),
    "add_ row": lambda x, y, p: x.add_(y[0]),
    "add_ number": lambda x, y, p: x.add_(2),
    "sub_": lambda x, y, p: x.sub_(y),
    "mul_": lambda x, y, p: x.mul_(y),
    "mul_ self": lambda x, y, p: x.mul_(x),
    "div_": lambda x, y, p: x.div_(p),
    "sqrt_": lambda x, y, p: p.sqrt_(),
    "neg_": lambda x, y, p: x.neg_(),
    "addcmul_": lambda x, y, p: x.addcmul_(y, p, value=0.3),
    "addcdiv_": lambda x, y, p: x.addcdiv_(y, p, value=0.3),
    "lerp_": lambda x, y, p: x.lerp_(y, 0.2),
}


@pytest.mark.usefixtures("csrc_first")
@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("layout", ["whole", "view", "transposed"])
def test_in_place(name: str, layout: str) -> None:
    exact = [make(kind).double() for kind in "xyp"]
    IN_PLACE[name](*exact)
    base = torch.zeros(3, 9, 8, device="npu")
    lend = {
        "whole": lambda i, t: t.to("npu"),
        "view": lambda i, t: base[i, 1:7].copy_(t),
        "transposed": lambda i, t: transposed(t),
    }[layout]
    lent = [lend(i, make(kind)) for i, kind in enumerate("xyp")]
    addresses = [t.data_ptr() for t in lent]
    result = IN_PLACE[name](*lent)
    assert any(result is t for t in lent)
    assert addresses == [t.data_ptr() for t in lent]
    for found, wanted in zip(lent, exact, strict=True):
        torch.testing.assert_close(found.cpu().double(), wanted, rtol=2e-6, atol=2e-6)
    if layout == "view":
        assert base[:, 0].abs().max() == base[:, 7:].abs().max() == 0
    assert on_csrc()


@pytest.mark.usefixtures("csrc_first")
def test_in_place_with_overlapping_argument() -> None:
    """The kernel must read the values from before: it may not write where it reads."""
    x = torch.arange(8.0, device="npu")
    x[1:].add_(x[:-1])
    assert x.tolist() == [0.0, *(2.0 * i + 1 for i in range(7))]


@pytest.mark.usefixtures("csrc_first")
def test_bfloat16_keeps_dtype_and_rounds_once() -> None:
    x, y = make("x").bfloat16(), make("y").bfloat16()
    for run in (torch.add, torch.mul, lambda x, y: x.softmax(-1), lambda x, y: torch.nn.functional.silu(x)):
        found = run(x.to("npu"), y.to("npu")).cpu()
        assert found.dtype == torch.bfloat16
        exact = run(x.double(), y.double())
        # Half a unit in the last of 8 bits.
        assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-30).all()
    assert {"aten::add.Tensor", "aten::mul.Tensor"} <= on_csrc()


@pytest.mark.usefixtures("csrc_first")
def test_strict_takes_csrc_where_mindspore_has_no_kernel() -> None:
    x = make("x").bfloat16().to("npu")
    with route("strict"):
        x.softmax(-1)
    assert on_csrc() == {"aten::_softmax"}


@pytest.mark.usefixtures("csrc_first")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_tensors_beside_float32_are_read_as_they_are(dtype: torch.dtype) -> None:
    total, row, narrow = torch.randn(30, 40), torch.randn(40), torch.randn(30, 40).to(dtype)
    held, lent = total.to("npu"), narrow.to("npu")
    coverage.reset()
    held.add_(lent, alpha=0.5)
    assert {row["op"] for row in coverage.snapshot()} == {"aten::add_.Tensor"}, "no copy is made"
    torch.testing.assert_close(held.cpu(), total + 0.5 * narrow.float())
    for ours, plain in (
        (torch.add(lent, total.to("npu")), narrow + total),
        (torch.mul(row.to("npu"), lent), row * narrow),
        (torch.mul(lent, row.to("npu")), narrow * row),
        (torch.sub(total.to("npu"), lent), total - narrow),
    ):
        assert ours.dtype == plain.dtype == torch.float32
        torch.testing.assert_close(ours.cpu(), plain)
