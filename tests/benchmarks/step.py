"""Whole training steps of the recipe, our device against plain torch CPU: tokens/s, memory, breakdown.

    python -m tests.benchmarks.step [--quick] [--json FILE] [--case REGEX] [--pairs N] [--breakdown N]

Both sides run the same Megatron step (stock flags, AdamW, clipping) in a process of their own that stays
alive; steps are timed in turns. Plain torch is tests/reference/plain_torch.py: the script without our device.
Peak memory is the largest resident size of each process, imports included.

Marks: tokens/s >= 1.25x and memory <= 0.9x at hidden size 1024, tokens/s >= 1.0x at 256, coverage (share of
operator time on MindSpore + csrc) >= 85 % in float32 from hidden size 512 on. `--quick` takes fewer layers,
tokens and pairs, and holds memory to nothing: at that size imports outweigh the model. `cpu ratio` compares
CPU seconds instead of the clock: on a machine that others load it says more.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mindspeed_ms.coverage_report import share  # noqa: E402

from tests.benchmarks.report import Report, arguments, table  # noqa: E402

WORKER = str(ROOT / "tests" / "benchmarks" / "step_worker.py")
SPEED, MEMORY, SMALL_SPEED, COVERAGE = 1.25, 0.9, 1.0, 0.85
WARMUP = 3
# Threads that wait for the next parallel region spin for a while: the other side's turn begins after that.
SETTLE_SECONDS = 0.3

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
            f"--mock-data --tokenizer-type NullTokenizer --num-workers 0 --data-cache-path {cache} "
            f"--use-cpu-initialization --seed 1 {'--bf16' if self.dtype == 'bf16' else ''}"
        ).split()


def cases(quick: bool) -> list[Case]:
    """The models to run."""
    layers, length = (2, 512) if quick else (4, 1024)
    found = [Case(style, dtype, 1024, layers, length) for style in STYLES for dtype in ("fp32", "bf16")]
    return [*found, Case("llama", "fp32", 256, 4, length)]


class Worker:
    """A process of step_worker.py."""

    def __init__(self, case: Case, plain: bool, cache: str, log: Path) -> None:
        reference = ["-m", "tests.reference.plain_torch"] if plain else []
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *reference, WORKER, *case.flags(cache)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
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


def measure(case: Case, pairs: int, folder: Path) -> dict[str, Any]:
    """Steps of both sides in turns: the row of the table, with the coverage rows of our side."""
    cache = str(folder / "cache")
    sides = {"ours": False, "plain": True}
    workers: dict[str, Worker] = {}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    try:
        for name, plain in sides.items():  # one after the other: the first one makes the data's index
            workers[name] = Worker(case, plain, cache, folder / f"{name}.log")
            workers[name].ask(f"step {WARMUP}")
        workers["ours"].ask("coverage")
        last = {}
        for index in range(pairs):
            for name in sorted(sides, reverse=bool(index % 2)):
                time.sleep(SETTLE_SECONDS)
                last[name] = workers[name].ask("step 1")
                seconds[name] += last[name]["seconds"]
                cpu[name].append(last[name]["cpu"])
        rows = workers["ours"].ask("coverage")
    finally:
        for worker in workers.values():
            worker.close()
    ratios = sorted(theirs / ours for ours, theirs in zip(seconds["ours"], seconds["plain"], strict=True))
    return {
        "case": case.name,
        "plain tokens/s": case.length / statistics.median(seconds["plain"]),
        "our tokens/s": case.length / statistics.median(seconds["ours"]),
        "ratio": statistics.median(ratios),
        "low": ratios[pairs // 4],
        "high": ratios[-1 - pairs // 4],
        "cpu ratio": statistics.median(cpu["plain"]) / statistics.median(cpu["ours"]),
        "memory ratio": last["ours"]["peak"] / last["plain"]["peak"],
        "coverage": share(rows),
        "loss difference": abs(last["ours"]["loss"] - last["plain"]["loss"]) / last["plain"]["loss"],
        "rows": rows,
        "step": statistics.mean(seconds["ours"]),
    }


def breakdown(rows: list[dict[str, Any]], pairs: int, step: float, top: int) -> str:
    """Operators of one of our steps by time, and what is left between them."""
    per_step = [
        {
            "operator": row["op"],
            "dtype": row["dtype"],
            "route": row["route"],
            "calls": row["calls"] / pairs,
            "ms": row["seconds"] / pairs * 1e3,
            "% of step": 100 * row["seconds"] / pairs / step,
        }
        for row in rows
    ]
    counted = sum(row["seconds"] for row in rows) / pairs
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
    parser.add_argument("--pairs", type=int, help="timed pairs of steps; default 11, quick 5")
    parser.add_argument("--breakdown", type=int, default=15, metavar="N", help="operators shown of each case")
    options: argparse.Namespace = parser.parse_args()
    pairs = options.pairs or (5 if options.quick else 11)
    report = Report("step", "whole training step: our device against plain torch CPU", options)
    for case in cases(options.quick):
        if not re.search(options.case, case.name):
            continue
        print(f"{case.name}: {pairs} pairs of steps ...", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            row = measure(case, pairs, Path(folder))
        rows, step = row.pop("rows"), row.pop("step")
        print(breakdown(rows, pairs, step, options.breakdown), flush=True)
        report.row(**row)
        report.summary[f"operators of {case.name}"] = rows
        aim = SPEED if case.hidden >= 1024 else SMALL_SPEED
        report.mark(f"{case.name}: tokens/s >= {aim}x", row["ratio"] >= aim, f"{row['ratio']:.2f}x")
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
