"""The package on target Ascend: the branches that ask for the target, taken."""

import mindspeed_ms.patch  # noqa: F401 - makes device npu
import pytest
import torch
from mindspeed_ms.device.mindspore import target

from tests.cann import counters


def test_the_target_is_ascend_and_tensors_live_there() -> None:
    assert target() == "Ascend"
    x = torch.randn(4, 6, device="cuda")
    assert (x + 1).sum().item() == pytest.approx((x.cpu() + 1).sum().item(), rel=1e-5)
    assert counters.read()["kernels"] > 0


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
    layers(x).square().mean().backward()
    expected = [p.grad.float() for p in layers.parameters()]
    layers.zero_grad()
    layers = layers.to("npu")
    layers(x.to("npu")).square().mean().backward()
    for parameter, want in zip(layers.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad.float().cpu(), want, rtol=5e-2, atol=5e-3)
