"""Collectives of backend mindspore against gloo: the same two processes, the same tensors, in turns.

Marks: at 64 MB at least 3x gloo's throughput, at 4 KB at most half its latency. Printed beside: what the
machine's memory allows (bytes that the algorithm must read and write, over the copy bandwidth of all ranks at
once), and the share of a training step that communication takes from 1 to 2 ranks (weak scaling).
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from report import Report, arguments

WORLD = 2
SIZES = {"4 KB": 4 << 10, "1 MB": 1 << 20, "64 MB": 64 << 20}
TURNS = {"4 KB": (41, 50), "1 MB": (21, 5), "64 MB": (11, 1)}
"""Size -> (paired turns, calls per turn)."""

TRAFFIC = {"all_reduce": 2.0, "all_gather": 3.0, "reduce_scatter": 1.5, "all_to_all": 2.0, "send/recv": 2.0}
"""Bytes read plus written per rank and byte of size on 2 ranks, if every byte is touched once. Size is each
rank's input (send/recv: the message, there and back, halved)."""

THROUGHPUT, LATENCY = 3.0, 0.5


def operations(size: int, rank: int) -> dict[str, Callable[[Any], Any]]:
    """Collective -> function of the group; tensors of ``size`` bytes, made once."""
    n = size // 4
    # Zeros: a sum that is made again and again stays what it is.
    full, other, gathered = torch.zeros(n), torch.empty(n), torch.empty(n * WORLD)
    part = torch.empty(n // WORLD)

    def ping_pong(group: Any) -> None:
        if rank == 0:
            dist.send(full, 1, group=group)
            dist.recv(other, 1, group=group)
        else:
            dist.recv(other, 0, group=group)
            dist.send(full, 0, group=group)

    return {
        "all_reduce": lambda group: dist.all_reduce(full, group=group),
        "all_gather": lambda group: dist.all_gather_single(gathered, full, group=group),
        "reduce_scatter": lambda group: dist.reduce_scatter_single(part, full, group=group),
        "all_to_all": lambda group: dist.all_to_all_single(other, full, group=group),
        "send/recv": ping_pong,
    }


def copy_bandwidth(group: Any) -> float:
    """Bytes per second read plus written by one rank while all ranks copy 64 MB."""
    source, target = torch.ones(16 << 20), torch.empty(16 << 20)
    times = []
    for _ in range(9):
        dist.barrier(group)
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return 2 * source.numel() * 4 / statistics.median(times)


def weak_scaling(group: Any) -> float:
    """Share of a data-parallel step (MLP, fp32) that a rank waits for its gradients, at fixed work per
    rank."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(6)])
    data = torch.randn(256, 1024)
    compute, total = [], []
    for _ in range(7):
        dist.barrier(group)
        start = time.perf_counter()
        model.zero_grad(set_to_none=False)
        model(data).square().mean().backward()
        computed = time.perf_counter()
        works = [dist.all_reduce(p.grad, group=group, async_op=True) for p in model.parameters()]
        for work in works:
            work.wait()
        total.append(time.perf_counter() - start)
        compute.append(computed - start)
    return 1 - statistics.median(compute) / statistics.median(total)


def rank_main(rank: int, port: int, quick: bool, results: Any) -> None:
    from mindspeed_ms import comm

    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(minutes=2))
    comm.register()
    gloo, ours = dist.group.WORLD, dist.new_group(backend="mindspore", timeout=timedelta(minutes=2))
    bandwidth = copy_bandwidth(gloo)
    rows = []
    for label, size in SIZES.items():
        turns, inner = TURNS[label]
        if quick:
            turns = (turns + 1) // 2
        for name, function in operations(size, rank).items():
            pairs = []
            for turn in range(turns + 2):
                seconds = {}
                for which, group in (("gloo", gloo), ("ours", ours))[:: 1 if turn % 2 else -1]:
                    dist.barrier(ours)
                    start = time.perf_counter()
                    for _ in range(inner):
                        function(group)
                    seconds[which] = (time.perf_counter() - start) / inner
                if turn >= 2:
                    pairs.append((seconds["gloo"], seconds["ours"]))
            half = 2 if name == "send/recv" else 1
            mine = statistics.median(p[1] for p in pairs) / half
            bound = None if label == "4 KB" else TRAFFIC[name] * size / bandwidth
            rows.append(
                {
                    "collective": name,
                    "size": label,
                    "gloo us": statistics.median(p[0] for p in pairs) / half * 1e6,
                    "ours us": mine * 1e6,
                    "gloo/ours": statistics.median(p[0] / p[1] for p in pairs),
                    "memory bound us": bound * 1e6 if bound else None,
                    "GB/s": size / mine / 1e9,
                }
            )
    share = weak_scaling(ours)
    if rank == 0:
        results.put((rows, bandwidth, share))
    dist.barrier(ours)
    dist.destroy_process_group()


def main() -> int:
    options = arguments(__doc__).parse_args()
    report = Report(
        "collectives", "Collectives on 2 ranks of one host: backend mindspore against gloo", options
    )
    context = multiprocessing.get_context("spawn")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    results = context.Queue()
    ranks = [
        context.Process(target=rank_main, args=(r, store.port, options.quick, results), daemon=True)
        for r in range(WORLD)
    ]
    for process in ranks:
        process.start()
    try:
        rows, bandwidth, share = results.get(timeout=900)
    finally:
        for process in ranks:
            process.join(30)
            process.kill()
    for row in rows:
        report.row(**row)
    report.summary["copy bandwidth per rank, GB/s"] = bandwidth / 1e9
    report.summary["weak scaling 1 -> 2 ranks: share of a step in communication"] = share
    for row in rows:
        ratio = row["gloo/ours"]
        if row["size"] == "64 MB":
            what = f"{row['collective']} 64 MB: {THROUGHPUT:g}x gloo's throughput"
            report.mark(what, ratio >= THROUGHPUT, f"{ratio:.2f}x")
        if row["size"] == "4 KB":
            what = f"{row['collective']} 4 KB: {LATENCY:g} of gloo's latency"
            report.mark(what, 1 / ratio <= LATENCY, f"{1 / ratio:.2f}")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
