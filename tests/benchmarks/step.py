"""Training steps of Megatron's trainer, our device against plain torch CPU: tokens/s, memory, breakdown.

    python -m tests.benchmarks.step [--quick] [--json FILE] [--case REGEX] [--turns N] [--breakdown N]

All sides run the same Megatron step (stock flags, AdamW, clipping) in processes of their own that stay alive;
steps are timed in turns. Plain torch is tests/reference/plain_torch.py: the script without our device, in the
four ways that a user has: eagerly, or with Megatron's jit fuser (torch.compile), each under the system's
malloc and under one that keeps freed memory, as jemalloc and tcmalloc do (glibc's own settings are raised).
Our side runs under the system's malloc. `ratio` is to the fastest of the four, `over ...` to each of them;
`memory ratio` is to the leanest. Peak memory is the largest resident size of a process, imports included.

Marks: the ratio to the fastest >= 1.15x in float32 and >= 1.2x in bfloat16 at hidden size 1024, >= 1.0x at
256; memory <= 0.9x at 1024; coverage (share of operator time on MindSpore + csrc) >= 85 % in float32 from
hidden size 512 on. `--quick` takes fewer layers, tokens and turns, one model of each style and dtype (all at
hidden size 1024 with `--case .`), and holds memory to nothing: at that size imports outweigh the model. `cpu
ratio` compares CPU seconds with those of the plain side that needs fewest instead of the clock: on a machine
that others load it says more.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "distributed")]

from mindspeed_ms.commands.coverage_report import share  # noqa: E402
from ranks import free_port  # noqa: E402

from tests.benchmarks.report import KEEP_MEMORY, Report, arguments, table  # noqa: E402
from tests.reference.stock_script import PLAIN_FLAGS  # noqa: E402

WORKER = str(ROOT / "tests" / "benchmarks" / "step_worker.py")
SPEED = {"fp32": 1.15, "bf16": 1.2}
SMALL_SPEED, MEMORY, COVERAGE = 1.0, 0.9, 0.85
WARMUP, QUICK_WARMUP = 3, 1
"""Steps before the timed ones. A quick run's first timed step is a warm-up, too: medians leave it out."""
# Threads that wait for the next parallel region spin for a while: the other side's turn begins after that.
SETTLE_SECONDS = 0.3

OURS = "ours"
COMPILED = {"TORCHDYNAMO_DISABLE": "0"}  # read by tests/reference/plain_torch.py and by torch
PLAIN: dict[str, dict[str, str]] = {
    "eager": {},
    "eager, kept memory": KEEP_MEMORY,
    "compiled": COMPILED,
    "compiled, kept memory": COMPILED | KEEP_MEMORY,
}
"""The ways of plain torch -> their environment."""

STYLES = {
    "gpt2": "--position-embedding-type learned_absolute --normalization LayerNorm --vocab-size 50256",
    "llama": (
        "--swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear "
        "--untie-embeddings-and-output-weights --vocab-size 31999"
    ),
}


@dataclass(frozen=True)
class Case:
    """One model."""

    style: str
    dtype: str
    hidden: int
    layers: int
    length: int

    @property
    def name(self) -> str:
        return f"{self.style} {self.dtype} hidden {self.hidden}"

    def flags(self, cache: str) -> list[str]:
        """Stock flags of this model and its training."""
        ffn = 4 * self.hidden if self.style == "gpt2" else (8 * self.hidden // 3 + 63) // 64 * 64
        return (
            f"{STYLES[self.style]} --num-layers {self.layers} --hidden-size {self.hidden} "
            f"--ffn-hidden-size {ffn} --num-attention-heads {self.hidden // 64} "
            f"--seq-length {self.length} --max-position-embeddings {self.length} --micro-batch-size 1 "
            "--global-batch-size 1 --attention-dropout 0 --hidden-dropout 0 --lr 1e-4 --min-lr 1e-5 "
            "--lr-decay-style cosine --weight-decay 0.1 --clip-grad 1.0 --train-iters 100000 --eval-iters 0 "
            "--eval-interval 100000 --log-interval 1000 "
            f"--mock-data --tokenizer-type NullTokenizer --num-workers 0 --data-cache-path {cache} "
            f"--use-cpu-initialization --seed 1 {'--bf16' if self.dtype == 'bf16' else ''}"
        ).split()


QUICK = r"gpt2 fp32|llama bf16"
"""The models of a quick run that asks for no others: five processes for each, three minutes in all."""


def cases(quick: bool) -> list[Case]:
    """The models to choose from."""
    layers, length = (2, 512) if quick else (4, 1024)
    found = [Case(style, dtype, 1024, layers, length) for style in STYLES for dtype in ("fp32", "bf16")]
    return found if quick else [*found, Case("llama", "fp32", 256, layers, length)]


class Worker:
    """A process of step_worker.py: our side, or a way of plain torch."""

    def __init__(self, case: Case, side: str, folder: Path) -> None:
        reference = [] if side == OURS else ["-m", "tests.reference.plain_torch"]
        plain = [] if side == OURS else PLAIN_FLAGS
        store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        own = folder / side.replace(" ", "_")
        own.mkdir()
        self._log = own / "log"
        with self._log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *reference, WORKER, *case.flags(str(own / "cache")), *plain],
                cwd=ROOT,
                env={**os.environ, **store, "PYTHONPATH": str(ROOT), **PLAIN.get(side, {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def ask(self, command: str) -> Any:
        """Sends a command, waits for its answer; RuntimeError with the end of the log if the process died."""
        try:
            print(command, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"a worker of the benchmark ended: {self._log.read_text()[-3000:]}")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


@dataclass
class Timed:
    """The timed steps of one side."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    loss: float = 0.0
    peak: int = 0

    def add(self, answer: dict[str, Any]) -> None:
        """One step, as step_worker.py reports it."""
        self.seconds += answer["seconds"]
        self.cpu.append(answer["cpu"])
        self.loss, self.peak = answer["loss"], answer["peak"]


def measure(
    case: Case, warmup: int, turns: int, folder: Path
) -> tuple[dict[str, Timed], list[dict[str, Any]]]:
    """Steps of all sides in turns, and the coverage rows of ours."""
    workers: dict[str, Worker] = {}
    timed = {side: Timed() for side in (OURS, *PLAIN)}
    try:
        for side in timed:
            workers[side] = Worker(case, side, folder)
        for worker in workers.values():
            worker.ask("coverage")  # all import and build at the same time, but step one after the other
        for worker in workers.values():
            worker.ask(f"step {warmup}")
        workers[OURS].ask("coverage")
        for index in range(turns):
            for side in sorted(timed, reverse=bool(index % 2)):
                time.sleep(SETTLE_SECONDS)
                timed[side].add(workers[side].ask("step 1"))
        return timed, workers[OURS].ask("coverage")
    finally:
        for worker in workers.values():
            worker.close()


def compare(case: Case, timed: dict[str, Timed]) -> dict[str, Any]:
    """The row of the table but for the coverage."""
    ours, plain = timed[OURS], {side: timed[side] for side in PLAIN}
    ratios = {
        side: sorted(theirs / own for theirs, own in zip(each.seconds, ours.seconds, strict=True))
        for side, each in plain.items()
    }
    fastest = min(plain, key=lambda side: statistics.median(ratios[side]))
    quarter = len(ratios[fastest]) // 4
    return {
        "case": case.name,
        "our tokens/s": case.length / statistics.median(ours.seconds),
        "fastest plain torch": fastest,
        "ratio": statistics.median(ratios[fastest]),
        "low": ratios[fastest][quarter],
        "high": ratios[fastest][-1 - quarter],
        **{f"over {side}": statistics.median(ratios[side]) for side in PLAIN},
        "cpu ratio": min(statistics.median(each.cpu) for each in plain.values())
        / statistics.median(ours.cpu),
        "memory ratio": ours.peak / min(each.peak for each in plain.values()),
        "loss difference": max(abs(ours.loss - each.loss) / each.loss for each in plain.values()),
    }


def breakdown(rows: list[dict[str, Any]], turns: int, step: float, top: int) -> str:
    """Operators of one of our steps by time, and what is left between them."""
    per_step = [
        {
            "operator": row["op"],
            "dtype": row["dtype"],
            "route": row["route"],
            "calls": row["calls"] / turns,
            "ms": row["seconds"] / turns * 1e3,
            "% of step": 100 * row["seconds"] / turns / step,
        }
        for row in rows
    ]
    counted = sum(row["seconds"] for row in rows) / turns
    rest = {
        "operator": "(between operators)",
        "ms": (step - counted) * 1e3,
        "% of step": 100 * (1 - counted / step),
    }
    return table([*per_step[:top], rest])


def main() -> int:
    """Command line; returns the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("--case", default="", help="only cases whose name contains this regular expression")
    parser.add_argument("--turns", type=int, help="timed steps of each side; default 11, quick 3")
    parser.add_argument("--breakdown", type=int, default=15, metavar="N", help="operators shown of each case")
    options: argparse.Namespace = parser.parse_args()
    turns = options.turns or (3 if options.quick else 11)
    warmup = QUICK_WARMUP if options.quick else WARMUP
    chosen = options.case or (QUICK if options.quick else "")
    report = Report("step", "whole training step: our device against plain torch CPU", options)
    for case in cases(options.quick):
        if not re.search(chosen, case.name):
            continue
        print(f"{case.name}: {turns} steps of each side ...", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            timed, rows = measure(case, warmup, turns, Path(folder))
        print(breakdown(rows, turns, statistics.mean(timed[OURS].seconds), options.breakdown), flush=True)
        row = compare(case, timed) | {"coverage": share(rows)}
        report.row(**row)
        report.summary[f"operators of {case.name}"] = rows
        aim = SPEED[case.dtype] if case.hidden >= 1024 else SMALL_SPEED
        report.mark(
            f"{case.name}: tokens/s >= {aim}x the fastest plain torch",
            row["ratio"] >= aim,
            f"{row['ratio']:.2f}x ({row['fastest plain torch']})",
        )
        if case.hidden >= 1024 and not options.quick:
            report.mark(
                f"{case.name}: peak memory <= {MEMORY}x",
                row["memory ratio"] <= MEMORY,
                f"{row['memory ratio']:.2f}x",
            )
        if case.hidden >= 512 and case.dtype == "fp32":
            report.mark(
                f"{case.name}: coverage >= {COVERAGE:.0%}",
                row["coverage"] >= COVERAGE,
                f"{row['coverage']:.1%}",
            )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
