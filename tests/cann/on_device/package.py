"""The package on target Ascend: the branches that ask for the target, taken."""

import copy

import mindspeed_ms.patch  # noqa: F401 - makes device npu
import pytest
import torch
from mindspeed_ms.device import to_mindspore
from mindspeed_ms.device.mindspore import target

from tests.cann import counters


def test_the_target_is_ascend_and_tensors_live_there() -> None:
    assert target() == "Ascend"
    x = torch.randn(4, 6, device="cuda")
    assert (x + 1).sum().item() == pytest.approx((x.cpu() + 1).sum().item(), rel=1e-5)
    assert counters.read()["kernels"] > 0


def test_the_calling_thread_launches() -> None:
    """An operator that returned is on the device, and one that fails says so itself; nobody waited."""
    from mindspore import mint

    x = to_mindspore(torch.randn(4, 6, device="npu"))
    before = counters.read()
    for launched in range(1, 9):
        mint.exp(x)
        assert counters.read()["kernels"] == before["kernels"] + launched
    assert counters.read()["stream_syncs"] == before["stream_syncs"]
    with pytest.raises(RuntimeError, match="MatMul"):
        mint.matmul(x, x)


def test_a_view_is_written_where_it_lies() -> None:
    x = torch.zeros(4, 6, device="npu")
    x[1:3, ::2] = 7
    expected = torch.zeros(4, 6)
    expected[1:3, ::2] = 7
    assert torch.equal(x.cpu(), expected)


def test_a_network_in_bfloat16_gets_its_gradients() -> None:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.LayerNorm(16)).bfloat16()
    x = torch.randn(5, 8, dtype=torch.bfloat16)
    # Not the mean of squares: after a LayerNorm that is a constant, and its gradient nothing but rounding.
    weights = torch.randn(5, 16, dtype=torch.bfloat16)
    exact = copy.deepcopy(layers).double()
    (exact(x.double()) * weights.double()).sum().backward()
    layers = layers.to("npu")
    (layers(x.to("npu")) * weights.to("npu")).sum().backward()
    for parameter, reference in zip(layers.parameters(), exact.parameters(), strict=True):
        error = (parameter.grad.cpu().double() - reference.grad).abs().max()
        assert error <= 0.02 * reference.grad.abs().max()  # a few roundings to 8 bits
