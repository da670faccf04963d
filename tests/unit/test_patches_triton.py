"""Torch in the place of Megatron's triton kernels and of grouped_gemm, against plain loops."""

import mindspeed_ms.patch  # noqa: F401
import pytest
import torch
from mindspeed_ms.patches.megatron import triton_kernels


def test_indices_to_multihot_and_its_gradient():
    indices = torch.tensor([[2, -1, 0], [-1, -1, -1], [1, 3, -1]], dtype=torch.int32, device="cuda")
    probs = torch.rand(3, 3, device="cuda", requires_grad=True)
    chosen, dense = triton_kernels.fused_indices_to_multihot(indices, probs, 4)
    expected = torch.zeros(3, 4)
    for row, column, expert in ((0, 0, 2), (0, 2, 0), (2, 0, 1), (2, 1, 3)):
        expected[row, expert] = probs[row, column].item()
    assert torch.equal(chosen.cpu(), expected > 0)
    assert torch.equal(dense.detach().cpu(), expected)
    dense.backward(torch.full_like(dense, 2.0))
    assert torch.equal(probs.grad.cpu(), 2.0 * (indices.cpu() >= 0))


@pytest.mark.parametrize("position", [0, 2, 5])
def test_slice_after_and_merge(position):
    a, b = torch.arange(10.0, device="cuda").view(5, 2), -torch.ones(6, 2, device="cuda")
    at = torch.tensor([position], device="cuda")
    out = torch.zeros(5, 2, device="cuda")
    triton_kernels.tensor_get_slice_after(a, out, at, check_bounds=True)
    assert torch.equal(out[: 5 - position], a[position:])
    assert not out[5 - position :].any()
    merged = torch.zeros(8, 2, device="cuda")
    triton_kernels.tensor_merge(a, b, at, merged, check_bounds=True)
    assert torch.equal(merged[:position], a[:position])
    assert torch.equal(merged[position : position + 6], b[: 8 - position])
    triton_kernels.tensor_merge(a, b, at)
    assert torch.equal(a[position:], b[: 5 - position])


def test_bounds_are_checked():
    a, at = torch.zeros(3, 2, device="cuda"), torch.tensor([4], device="cuda")
    with pytest.raises(AssertionError, match="outside"):
        triton_kernels.tensor_merge(a, a.clone(), at, check_bounds=True)
    with pytest.raises(AssertionError, match="do not fit"):
        triton_kernels.tensor_get_slice_after(a, torch.zeros(1, 2, device="cuda"), at - 4, check_bounds=True)


def test_masked_update():
    states = torch.zeros(4, 2, 3, device="cuda")
    new = torch.rand(3, 2, 3, device="cuda")
    triton_kernels.tensor_masked_update(states, torch.tensor([3, -1, 0], device="cuda"), new)
    assert torch.equal(states[3], new[0])
    assert torch.equal(states[0], new[2])
    assert not states[1:3].any()


@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_gemm_with_an_expert_without_rows(transposed):
    from grouped_gemm import ops

    a = torch.rand(5, 3, device="cuda", requires_grad=True)
    b = torch.rand(3, 3, 4, device="cuda", requires_grad=True)
    weights = b.transpose(1, 2).contiguous() if transposed else b
    out = ops.gmm(a, weights, torch.tensor([2, 0, 3]), trans_b=transposed)
    expected = torch.cat([a[:2] @ b[0], a[2:] @ b[2]])
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert not b.grad[1].any()
    assert b.grad[0].any()


def test_grouped_weight_gradient():
    from grouped_gemm import ops

    a, b = torch.rand(5, 3, device="cuda"), torch.rand(5, 4, device="cuda")
    found = ops.gmm(a, b, torch.tensor([2, 0, 3]), trans_a=True)
    expected = torch.stack([a[:2].t() @ b[:2], torch.zeros(3, 4, device="cuda"), a[2:].t() @ b[2:]])
    torch.testing.assert_close(found, expected)


def test_readings_of_the_straggler_detector():
    for name in ("utilization", "memory_usage", "temperature", "power_draw", "clock_rate"):
        assert getattr(torch.cuda, name)() == 0


def test_calls_of_a_profiled_run():
    for call in (torch.cuda.cudart().cudaProfilerStart, torch.cuda.cudart().cudaProfilerStop):
        torch.cuda.check_error(call())
    with torch.autograd.profiler.emit_nvtx(record_shapes=True):
        torch.ones(2, device="cuda").add(1)
