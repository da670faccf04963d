"""Sequences that the device makes. Run by tests/cann/test_device.py."""

import mindspeed_ms.patch  # noqa: F401 - switches the device on
import pytest
import torch
from mindspeed_ms.routes import coverage

RANGES = [
    (5,), (0,), (2, 9), (10, 2, -3), (0.5, 3.0, 0.5), (1, 8, 2.5),
]  # fmt: skip


@pytest.mark.parametrize("arguments", RANGES, ids=str)
def test_arange(arguments) -> None:
    coverage.reset()
    found = torch.arange(*arguments, device="npu")
    assert {row["route"] for row in coverage.snapshot() if "arange" in row["op"]} <= {"mindspore"}
    expected = torch.arange(*arguments)
    assert found.dtype == expected.dtype
    assert found.cpu().equal(expected)


def test_arange_that_leads_nowhere() -> None:
    with pytest.raises(RuntimeError, match="does not lead from 1 to 5"):
        torch.arange(1, 5, -1, device="npu")
