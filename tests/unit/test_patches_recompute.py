"""Megatron's checkpoint of activations: parameters that the recomputed part returns."""

import mindspeed_ms.patch  # noqa: F401
import pytest
import torch
from megatron.core.tensor_parallel.random import checkpoint, initialize_rng_tracker
from mindspeed_ms import _runtime


@pytest.fixture(autouse=True)
def tracker():
    initialize_rng_tracker()


class WithBias(torch.nn.Module):
    """Returns its product and its bias, as Megatron's MLP does: who calls it adds the bias."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.weight = torch.nn.Parameter(torch.randn(4, 4, device="cuda"))
        self.bias = torch.nn.Parameter(torch.randn(4, device="cuda"))

    def forward(self, x):
        return torch.tanh(x @ self.weight), self.bias, "not a tensor"


@pytest.mark.parametrize("steps", [1, 3])
def test_a_returned_parameter_stays_a_leaf_and_has_its_gradient(steps):
    gradients, norms = [], []
    for run in (lambda part, x: part(x), lambda part, x: checkpoint(part, False, x)):
        part, x = WithBias(), torch.linspace(-1, 1, 8, device="cuda").view(2, 4).requires_grad_()
        hooked = []
        part.bias.register_post_accumulate_grad_hook(lambda p, seen=hooked: seen.append(p.grad.clone()))
        for _ in range(steps):
            product, bias, word = run(part, x)
            assert word == "not a tensor"
            assert part.bias.is_leaf
            (product + bias).square().sum().backward()
        assert len(hooked) == steps
        gradients.append([part.weight.grad, part.bias.grad, x.grad])
        norms.append(hooked[-1].norm().item())
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-6, atol=1e-6)
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_a_single_output_that_is_a_parameter():
    part, x = WithBias(), torch.ones(2, 4, device="cuda", requires_grad=True)
    out = checkpoint(lambda x: part.bias * 1 if x is None else part.bias, False, x)
    out.sum().backward()
    assert part.bias.is_leaf
    assert part.bias.grad.tolist() == [1.0] * 4


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_handed_on_lives_as_long_as_either(device):
    """What Megatron >= 0.18 does after it recomputed an output: views of the old one see the new values."""
    old, new = torch.zeros(2, 3, device=device), torch.arange(6.0, device=device)
    part, version = old[1], old._version
    old.untyped_storage().resize_(0)
    _runtime.share_storage(old, new)
    assert old._version == version
    assert part.tolist() == [3, 4, 5]
    new.add_(10)
    assert (part * 2).tolist() == [26, 28, 30]
    del new
    assert torch.mm(old, old.t()).tolist() == [[365, 464], [464, 590]]
    old.untyped_storage().resize_(12)
    assert old[0].tolist() == [10, 11, 12]


def test_memory_is_not_handed_between_devices():
    with pytest.raises(RuntimeError, match="cannot share the memory of one on cpu"):
        _runtime.share_storage(torch.zeros(2, device="cuda"), torch.zeros(2))


def test_memory_handed_back_and_forth_stays_what_it_was():
    a, b = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")
    for to, given in ((a, a), (b, a), (a, b), (b, b)):
        _runtime.share_storage(to, given)
    a.mul_(2)
    assert (a + b).tolist() == [4, 4, 4]
