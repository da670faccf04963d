"""The torch device on target Ascend: copies, memory, random numbers, streams, and what crosses the bus.

Run by tests/cann/test_device.py.
"""

from __future__ import annotations

import os

import mindspeed_ms.patch  # noqa: F401 - the device
import pytest
import torch
from mindspeed_ms import _runtime

from tests.cann import counters

MEGABYTE = 2**20


@pytest.fixture
def crossing():
    """What crossed the bus since the test began, (to the device, to the host, synchronisations).

    As the package counts it, which is what the simulated runtime saw.
    """
    torch.zeros(1, device="npu").item()  # the device has started
    torch.cuda.synchronize()
    _runtime.reset_bus_counters()
    counters.reset()

    def read() -> tuple[int, int]:
        torch.cuda.synchronize()
        rows = _runtime.bus_counters().values()
        ours = tuple(sum(row[key] for row in rows) for key in ("to_device_bytes", "to_host_bytes"))
        seen = counters.read()
        assert ours == (seen["h2d_bytes"], seen["d2h_bytes"])
        return ours

    return read


def test_host_tensors_of_any_shape_arrive():
    x = torch.randn(3, 4, 5)
    assert x.to("npu").cpu().equal(x)
    assert x.transpose(0, 2).to("npu").cpu().equal(x.transpose(0, 2))
    assert x.to("npu").stride() == x.stride()
    for dtype in (
        torch.bool,
        torch.bfloat16,
        torch.float64,
        torch.complex64,
        torch.uint16,
        torch.float8_e5m2,
    ):
        assert x.to(dtype).to("npu").cpu().float().equal(x.to(dtype).float())


def test_an_argument_handed_back_is_copied():
    x = torch.ones(3, 4, device="npu")
    torch.cat([x]).zero_()
    assert x.sum().item() == 12


def test_in_place_operators_on_views_move_nothing(crossing):
    buffer, one = torch.zeros(16 * MEGABYTE // 4, device="npu"), torch.ones(1024, device="npu")
    three = torch.full((64,), 3.0, device="npu")
    for start in range(0, 10240, 1024):
        buffer[start : start + 1024].add_(one)
    buffer[:4096].view(64, 64).t()[1].mul_(three)
    assert crossing() == (0, 0)
    assert buffer[:10240].sum().item() == 10240 + 2 * 64


def test_copies_casts_and_dtype_views_stay_on_the_device(crossing):
    x = torch.full((64, 32), 1.5, device="npu")
    y = torch.empty(32, 64, device="npu", dtype=torch.bfloat16)
    y.copy_(x.t())
    z = y.float().clone().t().contiguous()
    bits = x.view(torch.int32)
    bits.add_(torch.zeros_like(bits))
    halves = x.view(torch.int16)
    resized = x.clone().resize_(32, 64).resize_(128, 32)
    assert crossing() == (0, 0)
    assert z.equal(x)
    assert resized[:64].equal(x)
    assert bits.unique().tolist() == [0x3FC00000]
    assert halves.shape == (64, 64)


def test_reads_move_what_is_read(crossing):
    x = torch.arange(MEGABYTE, device="npu", dtype=torch.float32)
    torch.cuda.synchronize()
    _runtime.reset_bus_counters()
    counters.reset()
    assert x[77].item() == 77
    assert crossing() == (0, 4)
    assert x[5:8].tolist() == [5, 6, 7]
    assert x.view(1024, 1024)[:2, 3].tolist() == [3, 1027]
    assert crossing() == (0, 4 + 12 + 8)
    assert x[9].expand(1000).cpu().sum() == 9000
    assert crossing() == (0, 4 + 12 + 8 + 4)


def test_host_writes_move_what_is_written(crossing):
    x = torch.zeros(MEGABYTE, device="npu")
    x[10:14] = torch.arange(4.0)
    x.view(1024, 1024)[:, 5].copy_(torch.ones(1024))
    x[20:24].copy_(torch.arange(4, dtype=torch.float64))
    assert crossing() == (16 + 4096 + 16, 0)
    assert x[10:14].tolist() == [0, 1, 2, 3]
    assert x[20:24].tolist() == [0, 1, 2, 3]
    assert x.sum().item() == 6 + 6 + 1024


def test_a_host_tensor_may_be_changed_after_its_copy():
    host = torch.ones(4096)
    sent = []
    for value in range(20):
        host.fill_(value)
        sent.append(host.to("npu"))
    assert [t.sum().item() / 4096 for t in sent] == list(range(20))


def test_a_copy_to_the_device_keeps_its_place_among_operators():
    x = torch.ones(1 << 16, device="npu")
    y = x
    for _ in range(10):
        y = y + 1
    y = x + y
    x.copy_(torch.full((1 << 16,), 100.0))
    assert (x + 0).eq(100).all().item()
    assert y.eq(12).all().item()


def test_random_numbers_follow_seed_and_offset(crossing):
    torch.cuda.manual_seed(5)
    state = torch.cuda.get_rng_state()
    first = [
        torch.randn(64, device="npu"),
        torch.rand(8, device="npu"),
        torch.empty(8, device="npu").bernoulli_(),
    ]
    assert crossing() == (0, 0)
    torch.cuda.set_rng_state(state)
    again = [
        torch.randn(64, device="npu"),
        torch.rand(8, device="npu"),
        torch.empty(8, device="npu").bernoulli_(),
    ]
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert not torch.randn(64, device="npu").equal(first[0])


def test_random_state_has_the_format_of_cuda():
    generator = torch.Generator(device="npu").manual_seed(9)
    torch.rand(2, device="npu", generator=generator)
    assert generator.get_state().view(torch.int64).tolist() == [9, generator.get_offset()]
    other = torch.Generator(device="npu")
    other.set_state(generator.get_state())
    assert torch.rand(4, device="npu", generator=other).equal(
        torch.rand(4, device="npu", generator=generator)
    )


def test_a_random_state_of_the_cpu_target_is_taken():
    state = torch.Generator().manual_seed(3).get_state()
    drawn = []
    for _ in range(2):
        torch.cuda.set_rng_state(state)
        drawn.append(torch.rand(4, device="npu"))
    assert drawn[0].equal(drawn[1])
    torch.cuda.set_rng_state(torch.Generator().manual_seed(4).get_state())
    assert not torch.rand(4, device="npu").equal(drawn[0])


def test_megatrons_tracker_forks_the_stream():
    tensor_parallel = pytest.importorskip("megatron.core.tensor_parallel")
    tracker = tensor_parallel.get_cuda_rng_tracker()
    tracker.reset()
    torch.cuda.manual_seed(1)
    tracker.add("apart", 77)
    before = torch.cuda.get_rng_state()
    with tracker.fork("apart"):
        inside = torch.rand(4, device="npu")
    assert torch.cuda.get_rng_state().equal(before)
    torch.cuda.manual_seed(77)
    assert torch.rand(4, device="npu").equal(inside)


def test_distributions():
    torch.cuda.manual_seed(2)
    n = 20000
    assert abs(torch.randn(n, device="npu").cpu().std().item() - 1) < 0.03
    assert abs(torch.empty(n, device="npu").exponential_(2.0).cpu().mean().item() - 0.5) < 0.02
    mask = torch.nn.functional.dropout(torch.ones(n, device="npu"), 0.25).cpu()
    assert abs((mask == 0).float().mean().item() - 0.25) < 0.02
    assert mask.max().item() == pytest.approx(1 / 0.75)
    assert torch.randperm(100, device="npu").cpu().sort().values.equal(torch.arange(100))
    numbers = torch.randint(3, 7, (n,), device="npu").cpu()
    assert numbers.unique().tolist() == [3, 4, 5, 6]


def test_streams_and_events_order_work():
    x = torch.zeros(1 << 16, device="npu")
    side = torch.cuda.Stream()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(5):
        x.add_(1)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        assert torch.cuda.current_stream() == side
        y = x * 2
        end.record()
    torch.cuda.current_stream().wait_stream(side)
    assert y.eq(10).all().item()
    end.synchronize()
    assert end.query()
    assert side.query()
    assert start.elapsed_time(end) > 0


def test_memory_is_counted_by_the_device():
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    before, free = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    block = torch.ones(32 * MEGABYTE, device="npu")
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before >= block.nbytes
    assert torch.cuda.max_memory_allocated() >= torch.cuda.memory_allocated()
    held = torch.cuda.memory_reserved()
    assert held >= torch.cuda.memory_allocated()
    del block
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < MEGABYTE
    assert torch.cuda.max_memory_allocated() - before >= 32 * MEGABYTE
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() - before < MEGABYTE
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < held
    assert free <= torch.cuda.mem_get_info()[1] == torch.cuda.get_device_properties(0).total_memory


def test_an_empty_tensor_takes_no_memory_of_the_host():
    torch.zeros(1, device="npu").item()
    before = torch.cuda.memory_allocated()
    big = torch.empty(1 << 34, dtype=torch.uint8, device="npu")  # 16 GB, of which nothing is touched
    assert big[3:5].shape == (2,)
    assert torch.cuda.memory_allocated() == before


def test_pinned_memory_is_sent_from_where_it_lies():
    host = torch.arange(16.0).pin_memory()
    assert host.is_pinned()
    sent = host.to("npu", non_blocking=True)
    torch.cuda.synchronize()
    assert sent.cpu().equal(host)


def test_the_card_is_that_of_local_rank_and_stays():
    card = int(os.environ["LOCAL_RANK"])
    assert torch.zeros(1, device="cuda").device.index == card == torch.cuda.current_device()
    assert torch.cuda.device_count() == 4
    torch.cuda.set_device(card)
    with pytest.raises(RuntimeError, match="keeps to one card"):
        torch.cuda.set_device(card - 1)
    with pytest.raises(RuntimeError, match="keeps to one card"):
        torch.zeros(1, device=f"cuda:{card - 1}")
    assert torch.cuda.get_device_name().startswith("Ascend910")


def test_an_error_of_mindspore_comes_out_as_it_is():
    from mindspore import mint

    x = _runtime.to_mindspore(torch.ones(2, 3, device="npu"))

    def multiply() -> None:  # MindSpore may notice at the call or when the result is asked for
        _runtime.from_mindspore(mint.matmul(x, x), torch.cuda.current_device()).cpu()

    with pytest.raises(Exception, match=r"(?i)matmul|shape|dim") as caught:
        multiply()
    assert "NULL" not in str(caught.value)
