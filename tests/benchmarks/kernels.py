"""Every fused kernel against torch's best composite on CPU, with the machine's roofline.

    python -m tests.benchmarks.kernels [--quick] [--json FILE] [--case REGEX] [--size REGEX]
        [--compile] [--no-amx]

Forward and backward of one layer's worth of each kernel (tests/benchmarks/kernel_cases.py), on npu tensors
and on CPU tensors, timed in turns on 2 threads. `ratio` is over torch's best: its own fused operator where it
has one (layer_norm, cross_entropy), else the composite; `over eager` over the composite of elementary
operators where the two differ. `GB/s` is the memory traffic that the work cannot do without over our time,
`of memory` its share of the memory's bandwidth, `of add` its share of what a sum of arrays reaches that moves
as many bytes, both timed in turns with it. A small case lies in the cache, where `of add` counts; memory is
slower. The sum is torch's, which reads what it overwrites; our kernels do not, hence shares above 1. The
errors are those of our and torch's results against float64, relative to the largest value.

Marks: kernels bound by memory >= 2x torch's eager composite and >= 80 % of the memory's bandwidth; attention
>= 1.5x scaled_dot_product_attention; AdamW >= 1.2x torch.optim.AdamW(fused=True) and >= 80 % of the
bandwidth; matrix products have none. A mark holds for the median over the sizes. `--compile` adds
torch.compile of the composite.

Both sides run under a malloc that keeps freed memory (the script starts itself again with glibc's settings):
otherwise fresh pages, not kernels, decide. Where the CPU has AMX, torch's 16-bit products (oneDNN) run on it;
`--no-amx` forbids it to them, and so shows the other kind of CPU. The summary says which kind was measured.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import mindspeed_ms.patch  # noqa: E402, F401 - switches the device on

from tests.benchmarks.kernel_cases import CASES, FASTER, Case, Size  # noqa: E402
from tests.benchmarks.kernel_product_cases import PRODUCTS  # noqa: E402
from tests.benchmarks.report import KEEP_MEMORY, Paired, Report, arguments, machine, paired  # noqa: E402

THREADS = 2
BANDWIDTH = 0.8
NO_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
"""Environment in which oneDNN, torch's and MindSpore's, does without AMX; it is read at the first product."""
BOUND_BY_MEMORY = ("memory", "optimizer", "read")
SECONDS = 3.0
"""How long a case is timed, at least three pairs."""
TURN = 0.03
"""Seconds that the turn of either side lasts at least: the first calls still find the other side's data in
the caches (a step of 1 ms takes 2 ms there), and take part in the mean."""
REST = 0.003
"""Seconds after which the threads of the other side sleep."""


def sizes(quick: bool) -> list[Size]:
    """Layers of models of 1 to 7 billion parameters."""
    shapes = (
        [(1024, 2048), (2048, 4096)] if quick else [(1024, 2048), (4096, 2048), (1024, 4096), (4096, 4096)]
    )
    return [Size(*shape, dtype) for shape in shapes for dtype in (torch.float32, torch.bfloat16)]


def kind_of_cpu() -> str:
    """With AMX or without, and whether it may be used."""
    if "amx_bf16" not in machine().get("bf16_instructions", []):
        return "without AMX"
    return "with AMX, which is forbidden (--no-amx)" if NO_AMX.items() <= os.environ.items() else "with AMX"


def best_of(work: Callable[[], Any], repeats: int = 9) -> float:
    """Shortest of some runs, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


MEMORY = 512 << 20
"""Bytes of the sum that measures the memory's bandwidth: more than any cache here."""


class Stream:
    """The bandwidth that a kernel is held against: a = b + c over `size` bytes, torch's or (npu) ours."""

    def __init__(self, size: int, device: str = "cpu") -> None:
        self.a, self.b, self.c = (torch.ones(max(1, size // 12), device=device) for _ in range(3))
        self.bytes = 12 * self.a.numel()

    def run(self) -> None:
        """Reads two arrays and writes one; on npu one of the device's cache of blocks."""
        if self.a.is_cpu:
            torch.add(self.b, self.c, out=self.a)
        else:
            self.a = torch.add(self.b, self.c)

    def rate(self) -> float:
        """Bytes per second."""
        return self.bytes / best_of(self.run)


@cache
def memory_stream() -> Stream:
    """The sum that measures the memory."""
    return Stream(MEMORY)


@cache
def multiply_rate(dtype: torch.dtype) -> float:
    """FLOP/s of torch's matrix product."""
    n = 2048
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    return 2 * n**3 / best_of(lambda: a @ b, 3)


def runner(
    function: Callable[..., Any], inputs: list[torch.Tensor], differentiate: bool
) -> Callable[[], Any]:
    """One call; forward and backward when it is differentiated."""
    if not differentiate:
        return lambda: function(*inputs)
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    grad = torch.cos(torch.arange(out.numel(), dtype=torch.float32)).reshape(out.shape).to(out.dtype)
    grad = grad.to(out.device)

    def step() -> list[torch.Tensor]:
        out = function(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    return step


def largest_error(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """Of all results, relative to the largest value of each."""
    return max(
        ((ours.cpu().double() - truth).abs().max() / truth.abs().max()).item()
        for ours, truth in zip(found, exact, strict=True)
    )


def errors(case: Case, ours: Callable[[], Any], theirs: Callable[[], Any]) -> dict[str, float]:
    """Of both sides against torch's composite in float64."""
    exact = runner(case.theirs, [x.double() for x in case.inputs], True)()
    return {"our error": largest_error(ours(), exact), "torch error": largest_error(theirs(), exact)}


def measure(case: Case, quick: bool, with_compiled: bool) -> dict[str, Any]:
    """The row of a case; a quick one without its errors and `of add`."""
    repeats = 3 if quick else 9
    ours = runner(case.ours, [x.to("npu") for x in case.inputs], case.differentiate)
    theirs = runner(case.theirs, case.inputs, case.differentiate)
    our_seconds = best_of(ours, 2)

    def against(other: Callable[[], Any]) -> Paired:
        seconds = (best_of(other, 2), our_seconds)
        return paired(
            other,
            ours,
            repeats=max(3, min(repeats, int(SECONDS / sum(seconds)))),  # the slowest pairs three times only
            inner=(max(1, round(TURN / seconds[0])), max(1, round(TURN / seconds[1]))),
            warmup=0,  # a turn begins with an untimed call
            rest=REST,
        )

    def share(stream: Stream) -> float:
        return against(stream.run).ratio * case.bytes / stream.bytes

    times = against(theirs)

    row = {
        "ours ms": times.second * 1e3,
        "torch ms": times.first * 1e3,
        "ratio": times.ratio,
        "low": times.spread[0],
        "high": times.spread[1],
        "GB/s": case.bytes / times.second / 1e9,
    }
    if case.kind in BOUND_BY_MEMORY:
        row["of memory"] = share(memory_stream())
        if not quick:
            row["of add"] = share(Stream(case.bytes))
    if case.eager:
        row["over eager"] = against(runner(case.eager, case.inputs, True)).ratio
    if not quick and case.differentiate and case.kind != "random":
        row |= errors(case, ours, theirs)
    if with_compiled and case.differentiate:
        compiled = runner(torch.compile(case.theirs, dynamic=False), case.inputs, True)
        row["over compiled"] = against(compiled).ratio
    return row


def main() -> int:
    """Command line; returns the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("--case", default="", help="only kernels whose name matches this regular expression")
    parser.add_argument("--size", default="", help="only sizes whose name matches this regular expression")
    parser.add_argument("--compile", action="store_true", help="also against torch.compile of the composite")
    parser.add_argument("--no-amx", action="store_true", help="16-bit products as on a CPU without AMX")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    report = Report("kernels", "fused kernels, forward + backward, over torch's composite on CPU", options)
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    kinds = {}
    for name, build in (CASES | PRODUCTS).items():
        for size in sizes(options.quick)[: 2 if options.quick and name in PRODUCTS else None]:
            if not re.search(options.case, name) or not re.search(options.size, size.name):
                continue
            case = build(size)
            row = measure(case, options.quick, options.compile)
            kinds[name] = case.kind
            found[name, str(size.dtype).removeprefix("torch.")].append(row)
            report.row(kernel=name, size=size.name, **row)
            print(f"{name} {size.name}: {row['ratio']:.2f}x", flush=True)
    for (name, dtype), rows in found.items():
        kind = kinds[name]
        ratio = statistics.median(row.get("over eager", row["ratio"]) for row in rows)
        if kind in FASTER:
            wanted = FASTER[kind]
            report.mark(f"{name} {dtype}: >= {wanted}x torch", ratio >= wanted, f"{ratio:.2f}x")
        if kind in BOUND_BY_MEMORY:
            share = statistics.median(row["of memory"] for row in rows)
            report.mark(
                f"{name} {dtype}: >= {BANDWIDTH:.0%} of bandwidth", share >= BANDWIDTH, f"{share:.0%}"
            )
    report.summary["CPU"] = kind_of_cpu()
    for size in (64 << 20, MEMORY):
        for side, device in (("torch's", "cpu"), ("our", "npu")):
            name = f"bandwidth of {side} sum over {size >> 20} MB, GB/s"
            report.summary[name] = Stream(size, device).rate() / 1e9
    for dtype in (torch.float32, torch.bfloat16):
        report.summary[f"matrix product {dtype}, GFLOP/s"] = multiply_rate(dtype) / 1e9
    return report.finish()


if __name__ == "__main__":
    wanted = KEEP_MEMORY | (NO_AMX if "--no-amx" in sys.argv else {})
    if not wanted.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})
    sys.exit(main())
