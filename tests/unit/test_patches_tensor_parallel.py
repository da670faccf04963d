"""What the adapter of sequence-parallel linear layers does with the gradient of a weight."""

import pytest
import torch
from mindspeed_ms.patches.megatron.tensor_parallel import weight_gradient


@pytest.mark.parametrize("zero_out", [False, True])
def test_a_buffer_gets_the_sum_and_the_hooks_a_gradient_to_find(zero_out):
    weight = torch.nn.Parameter(torch.randn(4, 6))
    weight.main_grad, weight.zero_out_wgrad = torch.ones(4, 6), zero_out
    grad, rows = torch.randn(5, 4), torch.randn(5, 6)
    assert weight_gradient(weight, True)(grad, rows) is None, "nobody waits for a gradient"
    weight.grad_added_to_main_grad = False
    found = weight_gradient(weight, True)(grad, rows)
    assert weight.grad_added_to_main_grad
    assert (found.shape, found.dtype) == (weight.shape, weight.dtype)
    assert not zero_out or not found.any()
    torch.testing.assert_close(weight.main_grad, 1 + 2 * torch.einsum("ro,ri->oi", grad, rows))


def test_without_fusion_it_is_the_product():
    weight = torch.nn.Parameter(torch.randn(4, 6))
    grad, rows = torch.randn(5, 4), torch.randn(5, 6)
    torch.testing.assert_close(
        weight_gradient(weight, False)(grad, rows), torch.einsum("ro,ri->oi", grad, rows)
    )
    weight.main_grad = torch.ones(4, 6)
    torch.testing.assert_close(
        weight_gradient(weight, False)(grad, rows), torch.einsum("ro,ri->oi", grad, rows)
    )
    assert torch.equal(weight.main_grad, torch.ones(4, 6))
