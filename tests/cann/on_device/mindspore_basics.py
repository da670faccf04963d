"""MindSpore's own Ascend backend at work: arithmetic, views, autograd, errors, memory, counters."""

import os

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, mint
from mindspore.ops.auto_generate import as_strided

from tests.cann import counters

ms.set_device("Ascend", 0)
RANDOM = np.random.default_rng(0)
A = RANDOM.standard_normal((4, 6)).astype(np.float32)


def test_as_strided_views_are_read_and_written_in_place() -> None:
    x = Tensor(np.arange(24, dtype=np.float32)) * 1
    view = as_strided(x, (3, 4), (8, 2), 1)
    expected = np.arange(24, dtype=np.float32)
    window = np.lib.stride_tricks.as_strided(expected[1:], (3, 4), (32, 8))
    assert np.array_equal((view + 0).asnumpy(), window)
    view.copy_(Tensor(np.full((3, 4), -1, np.float32)))
    window[:] = -1
    assert np.array_equal(x.asnumpy(), expected)


def test_in_place_through_a_slice() -> None:
    x = Tensor(A.copy()) * 1
    part = x[1:3]
    part.add_(Tensor(np.ones((2, 6), np.float32)))
    part.mul_(2.0)
    expected = A.copy()
    expected[1:3] = (expected[1:3] + 1) * 2
    assert np.allclose(x.asnumpy(), expected)


def test_autograd_of_a_two_layer_network() -> None:
    shapes = ((8, 6), (16, 6), (16,), (3, 16), (3,), (8, 3))
    x, w1, b1, w2, b2, y = (RANDOM.standard_normal(shape).astype(np.float32) for shape in shapes)

    def loss(w1, b1, w2, b2):
        hidden = mint.nn.functional.relu(mint.nn.functional.linear(Tensor(x), w1, b1))
        error = mint.nn.functional.linear(hidden, w2, b2) - Tensor(y)
        return mint.mean(error * error)

    value, gradients = ms.value_and_grad(loss, grad_position=(0, 1, 2, 3))(*map(Tensor, (w1, b1, w2, b2)))
    hidden = np.maximum(x @ w1.T + b1, 0)
    error = hidden @ w2.T + b2 - y
    d_out = 2 * error / error.size
    d_hidden = d_out @ w2 * (hidden > 0)
    expected = (d_hidden.T @ x, d_hidden.sum(0), d_out.T @ hidden, d_out.sum(0))
    assert np.allclose(value.asnumpy(), (error * error).mean(), rtol=1e-5)
    for got, want in zip(gradients, expected, strict=True):
        assert np.allclose(got.asnumpy(), want, atol=1e-4)


def test_an_error_of_a_kernel_reaches_python_and_the_device_goes_on() -> None:
    with pytest.raises(RuntimeError, match="aclnnIndexSelect failed: index out of range"):
        mint.index_select(Tensor(A), 0, Tensor([99])).asnumpy()
    assert np.allclose(mint.add(Tensor(A), Tensor(A)).asnumpy(), A + A)


def test_refused_arguments_are_an_error_that_names_the_operator() -> None:
    half = Tensor(A).astype(ms.complex64)
    with pytest.raises(RuntimeError, match=r"aclnnTanh: self must not be ComplexFloat"):
        mint.tanh(half).asnumpy()


def test_counters_count_launches_copies_and_synchronisations() -> None:
    x = Tensor(A) * 1
    ms.runtime.synchronize()
    counters.reset()
    y = mint.add(x, x)
    y.asnumpy()
    now = counters.read()
    assert now["launches"] == {"aclnnAdd": 1}
    assert (now["kernels"], now["d2h"], now["d2h_bytes"], now["h2d"]) == (1, 1, A.nbytes, 0)
    assert now["stream_syncs"] + now["device_syncs"] + now["event_syncs"] >= 1


def test_executors_are_kept_in_cache_mode_and_follow_their_tensors() -> None:
    tensors = [Tensor(A[:, :5] + i) * 1 for i in range(4)]  # a shape of its own: nothing is kept yet
    ms.runtime.synchronize()
    counters.reset()
    sums = [mint.add(x, x) for x in tensors]
    ms.runtime.synchronize()
    now = counters.read()
    assert now["kernels"] == 4
    assert now["executors"] <= 1 if os.environ.get("CANNSIM_CACHE") else now["executors"] == 4
    for x, total in zip(tensors, sums, strict=True):
        assert np.array_equal(total.asnumpy(), 2 * x.asnumpy())


def test_memory_is_counted() -> None:
    before = ms.runtime.memory_allocated()
    x = mint.zeros((1024, 1024))
    ms.runtime.synchronize()
    assert ms.runtime.memory_allocated() - before >= x.nbytes
    assert counters.read()["memory_used"] >= x.nbytes
