"""Randomised collectives against gloo and closed forms in float64 / int64.

    python tests/conformance/collectives.py --cases 500 --seed 1 [--device npu]

Each case draws a collective, element type, shape, layout (contiguous, transposed, strided), sub-group, root,
reduction and sync/async form from a generator that all ranks share. Data that only moves is compared with
what gloo moves, or with what the sender is known to hold; reductions with the same inputs reduced in a wide
type.
Runs 2 and 4 ranks; exits non-zero on the first difference.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import queue
import random
import sys
import time
import traceback
from collections import Counter
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from mindspeed_ms import comm

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
OTHERS = (torch.bool, torch.complex64)
GLOO = (*FLOATS, torch.int64, torch.int32, torch.int8, torch.uint8)
"""Element types that gloo moves; what it does not is compared with what the senders are known to hold."""

COLLECTIVES = (
    *("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_single", "reduce_scatter"),
    *(
        "reduce_scatter_single",
        "all_to_all_single",
        "all_to_all",
        "gather",
        "scatter",
        "send_recv",
        "coalesced",
    ),
)
SHAPES = ((), (1,), (0,), (7,), (33, 5), (128, 129), (3, 4, 5), (70_001,), (513, 1024))
ROUNDING = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Relative error of rounding to nearest. 16-bit types round once; 4 terms in float32 up to 4 times."""


class Case:
    """One drawn case; equal on every rank."""

    def __init__(self, number: int, seed: int, world: int, device: str = "cpu") -> None:
        draw = random.Random(f"{seed}/{number}/{world}")
        self.number, self.seed, self.device = number, seed, device
        self.collective = draw.choice(COLLECTIVES)
        self.dtype = draw.choice(FLOATS + INTEGERS + OTHERS)
        self.shape = draw.choice(SHAPES)
        self.layout = draw.choice(("contiguous", "transposed", "strided"))
        self.ranks = tuple(sorted(draw.sample(range(world), draw.randint(min(2, world), world))))
        self.root = draw.choice(self.ranks)
        self.asynchronous = draw.random() < 0.5
        ops = ["SUM", "MAX", "MIN", "PRODUCT"]
        if self.dtype in INTEGERS:
            ops += ["BAND", "BOR", "BXOR"]
        if self.dtype in FLOATS:
            ops += ["AVG"]
        self.op = "SUM" if self.dtype in OTHERS else draw.choice(ops)

    def __repr__(self) -> str:
        form = "async" if self.asynchronous else "sync"
        return (
            f"case {self.number}: {self.collective} {self.op} {self.dtype} {self.shape} {self.layout} "
            f"ranks {self.ranks} root {self.root} {form}"
        )

    def tensor(self, rank: int, part: int = 0, leading: int | None = None) -> torch.Tensor:
        """Input number ``part`` of ``rank``, where and as this case has it; ``leading``: an extra first
        dimension."""
        return self.lay_out(self.values(rank, part, leading).to(self.device))

    def values(self, rank: int, part: int = 0, leading: int | None = None) -> torch.Tensor:
        """The same on the CPU."""
        shape = self.shape if leading is None else (leading, *self.shape)
        generator = torch.Generator().manual_seed(hash((self.seed, self.number, rank, part)) % 2**31)
        values = torch.randint(-4, 5, shape, generator=generator)
        if self.dtype in FLOATS:
            return (values + torch.rand(shape, generator=generator, dtype=torch.float64)).to(self.dtype)
        return values.abs().to(self.dtype) if self.dtype == torch.uint8 else values.to(self.dtype)

    def lay_out(self, data: torch.Tensor) -> torch.Tensor:
        """The same values, in this case's memory layout."""
        if self.layout == "transposed" and data.dim() >= 2:
            return data.transpose(0, -1).contiguous().transpose(0, -1)
        if self.layout == "strided" and data.dim() >= 1:
            wide = torch.zeros(*data.shape[:-1], data.shape[-1] * 2, dtype=data.dtype, device=data.device)
            wide[..., ::2] = data
            return wide[..., ::2]
        return data.clone()

    def like(self, *shape: int) -> torch.Tensor:
        return self.lay_out(torch.zeros(shape, dtype=self.dtype, device=self.device))


def reduced(case: Case, inputs: list[torch.Tensor]) -> torch.Tensor:
    """What the reduction of ``inputs`` must give, in a wide type."""
    stacked = torch.stack(inputs)
    if case.dtype == torch.bool:
        return stacked.any(0)
    if case.dtype.is_complex:
        return stacked.to(torch.complex128).sum(0)
    wide = stacked.to(torch.float64 if case.dtype in FLOATS else torch.int64)
    if case.op in ("SUM", "AVG"):
        return wide.sum(0) / (len(inputs) if case.op == "AVG" else 1)
    if case.op == "PRODUCT":
        return wide.prod(0)
    if case.op in ("MAX", "MIN"):
        return wide.amax(0) if case.op == "MAX" else wide.amin(0)
    combine = {"BAND": torch.bitwise_and, "BOR": torch.bitwise_or, "BXOR": torch.bitwise_xor}[case.op]
    *_, last = itertools.accumulate(wide, combine)
    return last


def check(
    case: Case, inputs: int, what: str, got: torch.Tensor, expected: torch.Tensor, size: torch.Tensor
) -> None:
    """Exact for data that only moved and for integers. Float reductions: rounding of the ``inputs`` float32
    operations, relative to ``size`` (sum of the absolute values where terms may cancel), and one to the
    type."""
    if got.dtype in ROUNDING and expected.dtype == torch.float64:
        bound = size * inputs * ROUNDING[torch.float32] + expected.abs() * ROUNDING[got.dtype] + 2.0**-24
        ok = bool(((got.double() - expected).abs() <= bound).all())
    elif expected.dtype in (torch.float64, torch.complex128):
        ok = torch.allclose(
            got.to(expected.dtype), expected, rtol=1e-6 if got.is_complex() else 1e-14, atol=1e-6
        )
    else:
        ok = torch.equal(got, expected.to(got.dtype))
    if not ok:
        raise AssertionError(f"{what} is wrong: got {got.flatten()[:6]}, expected {expected.flatten()[:6]}")


def run_case(case: Case, rank: int, group: Any, reference: Any) -> None:
    """Runs the case on ``group`` and compares with ``reference``, a gloo group of the same ranks."""
    size, me, root = len(case.ranks), case.ranks.index(rank), case.root
    options: dict[str, Any] = {"group": group, "async_op": case.asynchronous}
    op = getattr(dist.ReduceOp, case.op)
    everyone = [case.values(r) for r in case.ranks]
    own = case.tensor(rank)
    works: list[Any] = []
    moved: list[tuple[torch.Tensor, torch.Tensor]] = []
    sums: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
    match case.collective:
        case "all_reduce":
            works.append(dist.all_reduce(own, op, **options))
            sums.append((own, everyone))
        case "reduce":
            works.append(dist.reduce(own, root, op, **options))
            if rank == root:
                sums.append((own, everyone))
            else:
                moved.append((own, everyone[me]))
        case "broadcast":
            twin = case.values(rank)
            works.append(dist.broadcast(own, root, **options))
            if case.dtype in GLOO:
                dist.broadcast(twin, root, group=reference)
            moved.append((own, twin if case.dtype in GLOO else case.values(root)))
        case "all_gather":
            listed = [case.like(*case.shape) for _ in case.ranks]
            twins = [torch.zeros(case.shape, dtype=case.dtype) for _ in case.ranks]
            works.append(dist.all_gather(listed, own, **options))
            if case.dtype in GLOO:
                dist.all_gather(twins, everyone[me], group=reference)
            moved += list(zip(listed, twins if case.dtype in GLOO else everyone, strict=True))
        case "gather":
            listed = [case.like(*case.shape) for _ in case.ranks]
            works.append(dist.gather(own, listed if rank == root else None, root, **options))
            if rank == root:
                moved += list(zip(listed, everyone, strict=True))
        case "all_gather_single":
            out = case.like(size, *case.shape)
            works.append(dist.all_gather_single(out, own, **options))
            moved.append((out, torch.stack(everyone)))
        case "coalesced":
            outs = [case.like(size, *case.shape) for _ in range(3)]
            with dist._coalescing_manager(group, async_ops=True) as manager:
                for i, out in enumerate(outs):
                    dist.all_gather_single(out, case.tensor(rank, i), group=group)
            works.append(manager)
            moved += [(o, torch.stack([case.values(r, i) for r in case.ranks])) for i, o in enumerate(outs)]
        case "reduce_scatter":
            out = case.like(*case.shape)
            works.append(dist.reduce_scatter(out, [case.tensor(rank, p) for p in range(size)], op, **options))
            sums.append((out, [case.values(r, me) for r in case.ranks]))
        case "reduce_scatter_single":
            out = case.like(*case.shape)
            works.append(dist.reduce_scatter_single(out, case.tensor(rank, leading=size), op, **options))
            sums.append((out, [case.values(r, leading=size)[me] for r in case.ranks]))
        case "scatter":
            out = case.like(*case.shape)
            parts = [case.tensor(root, p) for p in range(size)] if rank == root else None
            works.append(dist.scatter(out, parts, root, **options))
            moved.append((out, case.values(root, me)))
        case "all_to_all":
            outs = [case.like(*case.shape) for _ in case.ranks]
            works.append(dist.all_to_all(outs, [case.tensor(rank, p) for p in range(size)], **options))
            moved += [(out, case.values(r, me)) for out, r in zip(outs, case.ranks, strict=True)]
        case "all_to_all_single":
            rows = random.Random(case.number)
            splits = [[rows.randint(0, 3) for _ in case.ranks] for _ in case.ranks]  # [from][to]
            source = case.tensor(rank, leading=sum(splits[me]))
            held = case.values(rank, leading=sum(splits[me]))
            arriving = [row[me] for row in splits]
            out = case.like(sum(arriving), *case.shape)
            twin = torch.zeros(out.shape, dtype=case.dtype)
            works.append(dist.all_to_all_single(out, source, arriving, splits[me], **options))
            if case.dtype in GLOO:
                dist.all_to_all_single(twin, held, arriving, splits[me], group=reference)
                moved.append((out, twin))
            sent = zip(case.ranks, splits, strict=True)
            cut = [case.values(r, leading=sum(row)).split(row)[me] for r, row in sent]
            moved.append((out, torch.cat(cut)))
        case "send_recv":
            out = case.like(*case.shape)
            requests = [
                dist.P2POp(dist.isend, own, case.ranks[(me + 1) % size], group),
                dist.P2POp(dist.irecv, out, case.ranks[me - 1], group),
            ]
            works += dist.batch_isend_irecv(requests if case.asynchronous else requests[::-1])
            moved.append((out, everyone[me - 1]))
    for work in works:
        if work is not None:
            work.wait()
    for i, (got, expected) in enumerate(moved):
        check(case, 0, f"output {i}", got.cpu(), expected, got.cpu())
    for got, inputs in sums:
        scale = reduced(case, inputs)
        if case.dtype in FLOATS:
            cancelling = case.op in ("SUM", "AVG")
            scale = torch.stack(inputs).double().abs().sum(0) if cancelling else scale.abs()
        check(case, size, "the reduction", got.cpu(), reduced(case, inputs), scale)


def rank_main(rank: int, world: int, port: int, cases: int, seed: int, device: str, results: Any) -> None:
    try:
        os.environ["LOCAL_RANK"] = str(rank)  # the card of this process
        torch.set_num_threads(1)
        if device == "npu":
            import mindspeed_ms.patch  # noqa: F401 - makes the device

        comm.register()
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        limit = timedelta(seconds=120)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=limit)
        groups = {
            ranks: (dist.new_group(ranks, limit, "mindspore"), dist.new_group(ranks, limit, "gloo"))
            for size in range(2, world + 1)
            for ranks in itertools.combinations(range(world), size)
        }
        drawn: Counter[str] = Counter()
        for number in range(cases):
            case = Case(number, seed, world, device)
            drawn[case.collective] += 1
            if rank not in case.ranks:
                continue
            try:
                run_case(case, rank, *groups[case.ranks])
            except BaseException as error:
                raise AssertionError(f"rank {rank} of {world}: {case}") from error
        dist.barrier()
        results.put((rank, None, dict(drawn)))
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, traceback.format_exc(), None))
        raise


def _answer(results: Any, ranks: list[Any], ends: float) -> Any:
    """The next rank's answer; AssertionError when one ended without, or when the time is up."""
    while True:
        ended = [process.exitcode for process in ranks if process.exitcode is not None]
        try:
            return results.get(timeout=2)
        except queue.Empty:
            if any(ended) or time.monotonic() > ends:
                raise AssertionError(f"no answer of a rank in time; ranks ended with {ended}") from None


def run(world: int, cases: int, seed: int, device: str = "cpu", timeout: float = 900) -> Counter[str]:
    """Runs ``cases`` cases on ``world`` ranks. Returns how often each collective was drawn; raises
    AssertionError
    naming the case on a difference."""
    context = multiprocessing.get_context("spawn")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    results = context.Queue()
    ranks = [
        context.Process(
            target=rank_main, args=(r, world, store.port, cases, seed, device, results), daemon=True
        )
        for r in range(world)
    ]
    for process in ranks:
        process.start()
    try:
        drawn: Counter[str] = Counter()
        ends = time.monotonic() + timeout
        for _ in ranks:
            _, error, by_rank = _answer(results, ranks, ends)
            if error is not None:
                raise AssertionError(error)
            drawn = Counter(by_rank)
        return drawn
    finally:
        for process in ranks:
            process.join(10)
            process.kill()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=300, help="cases per number of ranks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--device", choices=("cpu", "npu"), default="cpu", help="where the tensors are")
    options = parser.parse_args()
    for world in options.ranks:
        drawn = run(world, options.cases, options.seed, options.device)
        counts = ", ".join(f"{name} {n}" for name, n in sorted(drawn.items()))
        print(f"{world} ranks: {sum(drawn.values())} cases equal to the reference ({counts})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
