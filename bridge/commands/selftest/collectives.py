"""Group "collectives": what torch.distributed does between two cards, by dtype and layout of memory.

The values are small integers, which every dtype holds and adds exactly: whatever differs is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from mindspeed_ms.commands.selftest.rows import FLOATS, Case, Check

Tensor = torch.Tensor
Found = Iterator[tuple[str, Tensor, Tensor]]

REDUCED = (*FLOATS, torch.float64, torch.int64, torch.int32)
MOVED = (*REDUCED, torch.int8, torch.uint8, torch.bool)
SHAPE = (6, 5)


def _contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def _strided(x: Tensor) -> Tensor:
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype, device=x.device)
    wide[..., ::2] = x
    return wide[..., ::2]


def _offset(x: Tensor) -> Tensor:
    longer = torch.zeros(x.numel() + 3, dtype=x.dtype, device=x.device)
    longer[3:] = x.flatten()
    return longer[3:].view(x.shape)


LAYOUTS: tuple[Callable[[Tensor], Tensor], ...] = (_contiguous, _transposed, _strided, _offset)


class Rank:
    """The tensors of a rank, in a dtype and a layout."""

    def __init__(self, dtype: torch.dtype, layout: Callable[[Tensor], Tensor]) -> None:
        self.dtype, self.layout = dtype, layout
        self.me, self.world = dist.get_rank(), dist.get_world_size()
        self.peer = 1 - self.me

    def values(self, rank: int, part: int = 0, rows: int = SHAPE[0]) -> Tensor:
        """Part `part` of `rank`, on the host."""
        numbers = (torch.arange(rows * SHAPE[1]) + 3 * rank + part) % 5
        return (numbers % 2 if self.dtype is torch.bool else numbers).view(rows, SHAPE[1]).to(self.dtype)

    def make(self, *values: Any, **options: Any) -> Tensor:
        """The same on the device, laid out."""
        return self.layout(self.values(*values, **options).to("npu"))

    def room(self, rows: int = SHAPE[0]) -> Tensor:
        """For a result."""
        return self.layout(torch.zeros(rows, SHAPE[1], dtype=self.dtype, device="npu"))


def all_reduce(r: Rank) -> Found:
    ours = torch.stack([r.values(k).double() for k in range(r.world)])
    for op, expected in (
        ("SUM", ours.sum(0)),
        ("MAX", ours.amax(0)),
        ("MIN", ours.amin(0)),
        ("AVG", ours.mean(0)),
    ):
        if op != "AVG" or r.dtype.is_floating_point:
            x = r.make(r.me)
            dist.all_reduce(x, getattr(dist.ReduceOp, op))
            yield op, x, expected


def reduce(r: Rank) -> Found:
    x = r.make(r.me)
    dist.reduce(x, 1)
    if r.me == 1:
        yield "sum at rank 1", x, r.values(0) + r.values(1)


def broadcast(r: Rank) -> Found:
    x = r.make(r.me)
    dist.broadcast(x, 1)
    yield "from rank 1", x, r.values(1)


def all_gather(r: Rank) -> Found:
    parts, whole = [r.room() for _ in range(r.world)], r.room(r.world * SHAPE[0])
    dist.all_gather(parts, r.make(r.me))
    dist.all_gather_into_tensor(whole, r.make(r.me))
    for k, part in enumerate(parts):
        yield f"place of rank {k} in the list", part, r.values(k)
    yield "in one tensor", whole, torch.cat([r.values(k) for k in range(r.world)])


def reduce_scatter(r: Rank) -> Found:
    one, other = r.room(), r.room()
    dist.reduce_scatter(one, [r.make(r.me, part) for part in range(r.world)])
    dist.reduce_scatter_tensor(
        other, r.layout(torch.cat([r.values(r.me, k) for k in range(r.world)]).to("npu"))
    )
    expected = r.values(0, r.me) + r.values(1, r.me)
    yield "of a list", one, expected
    yield "of one tensor", other, expected


def gather(r: Rank) -> Found:
    parts = [r.room() for _ in range(r.world)]
    dist.gather(r.make(r.me), parts if r.me == 1 else None, 1)
    for k in range(r.world if r.me == 1 else 0):
        yield f"place of rank {k}", parts[k], r.values(k)


def scatter(r: Rank) -> Found:
    x = r.room()
    dist.scatter(x, [r.make(1, part) for part in range(r.world)] if r.me == 1 else None, 1)
    yield "part of rank 1", x, r.values(1, r.me)


def all_to_all(r: Rank) -> Found:
    parts = [r.room() for _ in range(r.world)]
    dist.all_to_all(parts, [r.make(r.me, part) for part in range(r.world)])
    for k, part in enumerate(parts):
        yield f"from rank {k}", part, r.values(k, r.me)
    for splits in ([[2, 2], [2, 2]], [[1, 4], [0, 2]], [[0, 3], [5, 0]]):
        sent, came = splits[r.me], [row[r.me] for row in splits]
        x = r.room(sum(came))
        dist.all_to_all_single(x, r.make(r.me, 0, sum(sent)), came, sent)
        cut = [r.values(k, 0, sum(row)).split(row)[r.me] for k, row in enumerate(splits)]
        yield f"rows {splits}", x, torch.cat(cut)


def send_receive(r: Rank) -> Found:
    x = r.room()
    if r.me == 0:
        dist.send(r.make(0), 1)
    else:
        dist.recv(x, 0)
        yield "one message", x, r.values(0)
    here, there = r.room(), r.room()  # both send first: as single messages they would wait for each other
    batch = [
        *(dist.P2POp(dist.isend, r.make(r.me, part), r.peer) for part in range(2)),
        *(dist.P2POp(dist.irecv, tensor, r.peer) for tensor in (here, there)),
    ]
    for work in dist.batch_isend_irecv(batch):
        work.wait()
    yield "first of a batch", here, r.values(r.peer)
    yield "second of a batch", there, r.values(r.peer, 1)


def in_the_background(r: Rank) -> Found:
    rooms = [r.room() for _ in range(4)]
    works = [dist.broadcast(x, k % 2, async_op=True) for k, x in enumerate(map(r.make, [r.me] * 4))]
    gathered = [r.room(2 * SHAPE[0]) for _ in rooms]
    works += [
        dist.all_gather_into_tensor(out, r.make(r.me, part), async_op=True)
        for part, out in enumerate(gathered)
    ]
    for work in works:
        work.wait()
    for part, out in enumerate(gathered):
        yield f"call {part}", out, torch.cat([r.values(k, part) for k in range(r.world)])


TABLE: dict[Callable[[Rank], Found], tuple[torch.dtype, ...]] = {
    **dict.fromkeys((all_reduce, reduce, reduce_scatter), REDUCED),
    **dict.fromkeys((broadcast, all_gather, gather, scatter, all_to_all, send_receive), MOVED),
    in_the_background: (torch.float32, torch.bfloat16),
}
"""What is called, and in which dtypes."""


def _case(call: Callable[[Rank], Found], dtype: torch.dtype) -> Case:
    def run(check: Check) -> None:
        for layout in LAYOUTS:
            for what, found, expected in call(Rank(dtype, layout)):
                check.equal(f"{what}, {layout.__name__.strip('_')}", found, expected)

    name = call.__name__.strip("_").replace("_", " ")
    return Case(f"{name} {str(dtype).removeprefix('torch.')}", run)


def _ranks(check: Check) -> None:
    x = [torch.full((3,), -1.0, device="npu") for _ in range(dist.get_world_size())]
    dist.all_gather(x, torch.full((3,), float(dist.get_rank()), device="npu"))
    check.equal("ranks in the order of their places", [t[0].item() for t in x], [0.0, 1.0])


def cases(group: str) -> Iterator[Case]:
    """Each call in each of its dtypes, with every layout."""
    dist.init_process_group("nccl", timeout=timedelta(seconds=60))
    yield Case("ranks stand where they belong", _ranks)
    for call, dtypes in TABLE.items():
        for dtype in dtypes:
            yield _case(call, dtype)
    dist.barrier()
    dist.destroy_process_group()
