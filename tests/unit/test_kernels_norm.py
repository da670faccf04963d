"""RMSNorm and LayerNorm against float64."""

import pytest
import torch
from kernel_checks import DTYPES, ISAS, check_against_float64, isa
from mindspeed_ms import kernels
from mindspeed_ms.kernels.norm import norm_composite

SHAPES = [(3, 9), (1, 17), (7, 64), (2, 3, 129), (33, 1000)]


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("center", [False, True], ids=["rms", "layer"])
@pytest.mark.parametrize("zero_centered", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_error_and_gradients(name, dtype, center, zero_centered, residual):
    torch.manual_seed(0)
    for shape in SHAPES:
        inputs = [torch.randn(shape).to(dtype) * 2 + 0.3, torch.randn(shape[-1]).to(dtype)]
        inputs += [torch.randn(shape[-1]).to(dtype)] if center else []
        inputs += [torch.randn(shape).to(dtype)] if residual else []
        seeds = [torch.randn(shape) for _ in range(1 + residual)]

        def call(function, x, weight, *rest):
            bias = rest[0] if center else None
            return function(x, weight, bias, rest[-1] if residual else None)

        def ours(x, weight, bias, other):
            if center:
                return kernels.layer_norm(x, weight, bias, zero_centered=zero_centered, residual=other)
            return kernels.rms_norm(x, weight, zero_centered=zero_centered, residual=other)

        def composite(x, weight, bias, other):
            return norm_composite(x, weight, bias, 1e-5, zero_centered, other, center)

        with isa(name):
            # A short row's gradient is a difference of nearly equal terms: its error scatters.
            check_against_float64(
                lambda *a, f=ours: call(f, *a), lambda *a, f=composite: call(f, *a), inputs, seeds,
                slack=3.0 if shape[-1] < 20 else 1.25,
            )  # fmt: skip


@pytest.mark.parametrize("name", ISAS)
def test_non_contiguous_and_mixed_dtypes(name):
    torch.manual_seed(0)
    base = torch.randn(64, 12, 40).bfloat16()
    x = base.transpose(0, 1)[:, ::2, 3:]
    weight = torch.randn(74)[::2]
    with isa(name):
        got = kernels.rms_norm(x, weight)
    assert torch.equal(got, kernels.rms_norm(x.contiguous(), weight.contiguous()))
    exact = norm_composite(x.double(), weight.double(), None, 1e-5, False, None, False)
    assert (got.double() - exact).abs().max() <= 2**-8 * exact.abs().max()


def test_rows_of_one():
    x = torch.tensor([[3.0], [-0.5]])
    expected = torch.tensor([[1.0], [-1.0]])
    torch.testing.assert_close(kernels.rms_norm(x, torch.ones(1), 1e-12), expected)
    assert torch.equal(kernels.layer_norm(x, torch.ones(1), torch.ones(1)), torch.ones(2, 1))


def test_zero_size():
    for shape in [(0, 8), (4, 0), (0,)]:
        x = torch.empty(shape, requires_grad=True)
        weight = torch.ones(shape[-1], requires_grad=True)
        y = kernels.layer_norm(x, weight)
        y.sum().backward()
        assert y.shape == x.shape
        assert torch.equal(weight.grad, torch.zeros(shape[-1]))


@pytest.mark.parametrize("name", ISAS)
def test_nan_inf_and_huge_values_stay_in_their_row(name):
    x = torch.randn(5, 37)
    x[1, 3], x[2, 36], x[3] = float("nan"), float("inf"), 1e18
    with isa(name):
        y = kernels.layer_norm(x, torch.ones(37), torch.zeros(37))
    expected = torch.nn.functional.layer_norm(x, (37,))
    assert torch.equal(y.isnan(), expected.isnan())
    torch.testing.assert_close(y[[0, 4]], expected[[0, 4]])


def test_only_what_is_needed_is_computed():
    x = torch.randn(4, 16)
    weight = torch.randn(16, requires_grad=True)
    kernels.rms_norm(x, weight).sum().backward()
    expected = (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)).sum(0)
    torch.testing.assert_close(weight.grad, expected)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"weight has shape \(3,\), expected \(4,\)"):
        kernels.rms_norm(torch.ones(2, 4), torch.ones(3))
    with pytest.raises(ValueError, match="residual is"):
        kernels.rms_norm(torch.ones(2, 4), torch.ones(4), residual=torch.ones(2, 5))
