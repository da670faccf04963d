"""Group "memory": tensors live on the device, statistics follow, what is freed goes back."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from mindspeed_ms.commands.selftest.rows import Case, Check

SIZE = 2**28


def _statistics(check: Check) -> None:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    block = torch.ones(SIZE, dtype=torch.uint8, device="npu")
    torch.cuda.synchronize()
    held, reserved = torch.cuda.memory_allocated() - before, torch.cuda.memory_reserved()
    check.require(held >= SIZE, f"memory_allocated rose by {held} bytes for a tensor of {SIZE}")
    check.require(torch.cuda.max_memory_allocated() - before >= SIZE, "max_memory_allocated did not follow")
    check.require(reserved >= SIZE, f"memory_reserved says {reserved} bytes beside a tensor of {SIZE}")
    del block
    torch.cuda.synchronize()
    left = torch.cuda.memory_allocated() - before
    check.require(left < SIZE // 16, f"{left} bytes stay allocated after the tensor is gone")
    torch.cuda.empty_cache()
    kept = torch.cuda.memory_reserved()
    check.require(kept <= reserved - SIZE, f"empty_cache() left {kept} of {reserved} reserved bytes")


def _device_total(check: Check) -> None:
    free, total = torch.cuda.mem_get_info()
    check.counts |= {"free_bytes": free, "total_bytes": total}
    check.require(0 < free <= total, f"mem_get_info() says {free} free of {total} bytes")


def _round_trip(check: Check) -> None:
    numbers = torch.arange(2**24, dtype=torch.int32)
    there = numbers.to("npu")
    check.equal("to the device and back", there.cpu(), numbers)
    pinned = numbers.pin_memory().to("npu", non_blocking=True)
    torch.cuda.synchronize()
    check.equal("from pinned memory", pinned.cpu(), numbers)
    check.equal("every third element", there[5::3].cpu(), numbers[5::3])
    check.equal("transposed", there.view(4096, 4096).t().contiguous().cpu(), numbers.view(4096, 4096).t())


def _used_again(check: Check) -> None:
    for value in range(40):
        block = torch.full((SIZE // 16,), value, dtype=torch.int32, device="npu")
        found = (block[0].item(), block[-1].item())
        check.require(found == (value, value), f"block {value} holds {found}")
    peak = torch.cuda.max_memory_allocated()
    check.require(peak < 40 * SIZE // 4, f"40 blocks, one at a time, took {peak} bytes")


def cases(group: str) -> Iterator[Case]:
    """Statistics and empty_cache, the device's total, copies, memory that is used again."""
    yield Case("statistics move, empty_cache gives back", _statistics)
    yield Case("free and total memory", _device_total)
    yield Case("copies between host and device", _round_trip)
    yield Case("freed memory is used again", _used_again)
