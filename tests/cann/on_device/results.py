"""What torch's operator database found on the simulated device: lazy conjugates, unmarked writes, lengths of
arange, dtypes of sums and numbers; that results without elements need no host, and that the host reads no
index. Against torch on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import mindspeed_ms.patch  # noqa: F401 - makes device npu
import pytest
import torch
from mindspeed_ms.routes import coverage

from tests.cann import counters

Tensor = torch.Tensor
COMPLEX = torch.complex(torch.arange(5.0), torch.arange(5.0) - 2)


def host_calls() -> list[str]:
    return [row["op"] for row in coverage.snapshot() if row["route"] == "host"]


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.conj().add_(1),
        lambda x: x.conj().copy_(2 * x),
        lambda x: torch._neg_view(x.real).mul_(2),
        lambda x: x.imag.neg_(),
    ],
    ids=["conjugate", "conjugate copied", "negative", "imaginary part"],
)
def test_a_lazy_conjugate_or_sign_is_seen_by_the_host(write: Callable[[Tensor], Tensor]) -> None:
    ours, expected = COMPLEX.to("npu"), COMPLEX.clone()
    assert torch.equal(ours.conj().cpu(), expected.conj())
    assert torch.equal(write(ours).cpu(), write(expected))
    assert torch.equal(ours.cpu(), expected)


def test_batch_norm_writes_its_running_statistics() -> None:
    x = torch.arange(32.0).reshape(8, 4)
    ours, expected = torch.nn.BatchNorm1d(4).to("npu"), torch.nn.BatchNorm1d(4)
    assert torch.allclose(ours(x.to("npu")).cpu(), expected(x))
    assert torch.allclose(ours.running_mean.cpu(), expected.running_mean)
    assert torch.allclose(ours.running_var.cpu(), expected.running_var)
    assert expected.running_mean.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.int32])
@pytest.mark.parametrize(
    "arguments", [(0.1, 1.1), (0.1, -7.9, -4.0), (2.1, -2.9, -1.0), (3.1,), (0, -8.000001, -4), (2, 12, 3)]
)
def test_arange_has_the_length_that_torch_gives_it(arguments: tuple, dtype: torch.dtype) -> None:
    expected = torch.arange(*arguments, dtype=dtype)
    torch.testing.assert_close(torch.arange(*arguments, dtype=dtype, device="npu").cpu(), expected)


def test_a_sum_has_the_dtype_that_is_asked_for() -> None:
    x = torch.arange(6, dtype=torch.int32).reshape(2, 3).to("npu")
    assert x.sum(1, dtype=torch.int32).dtype == x.sum(dtype=torch.int32).dtype == torch.int32
    assert x.sum(1, dtype=torch.int32).tolist() == [3, 12]


NOTHING: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "mm": lambda e, w, i: e @ w,
    "mm over nothing": lambda e, w, i: e.t() @ e,
    "add": lambda e, w, i: e + 1,
    "mul in place": lambda e, w, i: e.mul_(2),
    "out": lambda e, w, i: torch.add(e, e, out=torch.empty(0, device=e.device)),
    "cat of nothing": lambda e, w, i: torch.cat([e, e]),
    "cat with something": lambda e, w, i: torch.cat([e, w.t()]),
    "sum": lambda e, w, i: e.sum(),
    "sum over rows": lambda e, w, i: e.sum(0),
    "softmax": lambda e, w, i: torch.softmax(e, -1),
    "cast": lambda e, w, i: e.to(torch.bfloat16),
    "index_select": lambda e, w, i: w.index_select(0, i),
    "index": lambda e, w, i: w[i],
    "embedding": lambda e, w, i: torch.nn.functional.embedding(i, w),
    "topk": lambda e, w, i: e.topk(2)[1],
    "argmax": lambda e, w, i: e.argmax(1),
}


@pytest.mark.parametrize("name", NOTHING)
def test_results_without_elements_need_no_host(name: str) -> None:
    host = torch.empty(0, 4), torch.arange(12.0).reshape(4, 3), torch.empty(0, dtype=torch.int64)
    device = [t.to("npu") for t in host]
    coverage.reset()
    found = NOTHING[name](*device)
    assert host_calls() == []
    expected = NOTHING[name](*host)
    assert (found.shape, found.dtype, found.stride()) == (expected.shape, expected.dtype, expected.stride())
    assert torch.equal(found.cpu(), expected)


INDEXED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gather": lambda x, i: x.gather(1, i),
    "scatter": lambda x, i: x.scatter(1, i[:, :1], 2 * x),
    "scatter number": lambda x, i: x.scatter(1, i, 1.5),
    "scatter_add": lambda x, i: x.scatter_add(1, i, x),
    "index": lambda x, i: x[i[0]],
    "index_select": lambda x, i: x.index_select(0, i[0]),
    "index_put": lambda x, i: x.clone().index_put_((i[0, :2],), x[0]),
    "index_add": lambda x, i: x.index_add(0, i[0], x[:1].expand(4, 4)),
    "embedding": lambda x, i: torch.nn.functional.embedding(i, x),
    "nll_loss": lambda x, i: torch.nn.functional.nll_loss(x, i[0]),
    "masked_scatter": lambda x, i: x.masked_scatter(i > 1, 2 * x),
    "masked_fill": lambda x, i: x.masked_fill(i > 1, 3),
}


@pytest.mark.parametrize("name", INDEXED)
def test_the_host_reads_no_index(name: str) -> None:
    """It would have to wait for the device at every call."""
    host = torch.arange(16.0).reshape(4, 4), (torch.arange(16) * 3 % 4).reshape(4, 4)
    device = [t.to("npu") for t in host]
    torch.npu.synchronize()
    coverage.reset()
    before = counters.read()
    found = INDEXED[name](*device)
    after = counters.read()
    waits = ("d2h", "stream_syncs", "device_syncs", "event_syncs")
    assert [after[wait] - before[wait] for wait in waits] == [0, 0, 0, 0]
    assert host_calls() == []
    torch.testing.assert_close(found.cpu(), INDEXED[name](*host))


def test_an_expert_without_tokens_gets_gradients_of_zeros() -> None:
    layer = torch.nn.Linear(4, 3).to("npu")
    tokens = torch.empty(0, 4, device="npu")
    coverage.reset()
    layer(tokens).sum().backward()
    assert host_calls() == []
    assert not layer.weight.grad.any()
    assert not layer.bias.grad.any()


def test_wrong_arguments_without_elements_are_torch_s_error() -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        torch.empty(0, 4, device="npu") @ torch.ones(5, 3, device="npu")
