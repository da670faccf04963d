"""What a training step costs the host on target Ascend, over the simulated CANN.

    python -m tests.benchmarks.ascend_step --megatron-lm-path DIR [--quick] [--only TEXT] [--json FILE]

Stock ``pretrain_gpt.py`` in bfloat16 with the distributed optimizer, one micro batch a step, 2 layers of 64
channels on one rank: launches depend on the layers, not on the sizes. Of one step are counted: operators,
those on the host, launches of kernels, bytes to and from the device, waits of the host for the device, HCCL
communicators; launches per layer are those of 4 layers over those of 2. Then kernels compute nothing
(``--null``), and milliseconds are host time: of the whole step, of the operators in it (the rest is Megatron
and autograd), of MindSpore's calls where the operators make them, and of the same calls alone, one after the
other with nothing between them (ascend_calls.py). All of it is time in which the calling thread ran:
MindSpore launches in that thread, and other processes do not lengthen it, though they do empty its caches.

The same call takes twice as long in a step as alone, because Megatron, autograd and a hundred other operators
ran since it was made last, and its code has to come from memory again. So what is ours is judged within the
step; the ratio to the calls alone is given beside it.

Of experts, whose shapes depend on what was computed, null mode computes the whole numbers: every token goes
to the same experts.

Marks: no operator on the host; operators at most 1.3 times MindSpore's calls in the step, as the median over
pairs of neighbouring steps.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.ascend_parity import RECIPES, SMALL, checkout_argument, script_of
from tests.benchmarks.report import Report, arguments
from tests.benchmarks.stock_cases import RESHARDABLE
from tests.cann import build
from tests.cann.run import environment
from tests.reference.stock_script import MOCK, MODEL

WORKER = Path(__file__).with_name("ascend_step_worker.py")
MARK = 1.3
MODELS = {
    "GPT-2": RECIPES["GPT-2"],
    "Llama": RECIPES["Llama"],
    "MoE, grouped GEMM": f"{RECIPES['MoE']} --moe-permute-fusion --moe-grouped-gemm",
    "MLA + MTP": f"{RECIPES['MLA']} --position-embedding-type rope --mtp-num-layers 1",
}
QUICK = ("Llama", "MoE, grouped GEMM")
COMPUTED_NOTHING = ("--no-check-for-nan-in-loss-and-grad", "--rerun-mode", "disabled")
"""Where kernels compute nothing, a loss is whatever its memory holds."""
COUNTED, TIMED = 4, 42
"""Iterations of a run."""


class Runs:
    """Runs of one model in a folder that keeps its recorded calls."""

    def __init__(self, script: Path, folder: Path, cann: Path, flags: str) -> None:
        self._script, self._folder, self._cann = script, folder, cann
        self._flags = [*MODEL, *MOCK, *SMALL.split(), *RESHARDABLE, "--bf16", "--global-batch-size", "2"]
        self._flags += flags.split()

    def _start(self, mode: str, *extra: str, null: bool) -> None:
        base = {**os.environ, "CUDA_DEVICE_MAX_CONNECTIONS": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "mindspeed_ms", "run", WORKER, mode, self._folder, self._script]
        done = subprocess.run(
            [*map(str, command), *self._flags, *extra],
            env=environment(self._cann, null=null, base=base),
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode:
            raise RuntimeError(f"the run that should {mode} failed: {done.stderr[-3000:]}")

    def count(self, layers: int) -> dict[str, Any]:
        """Counts of a step that computes."""
        self._start("count", "--num-layers", str(layers), "--train-iters", str(COUNTED), null=False)
        return json.loads((self._folder / "counts.json").read_text())

    def time(self) -> dict[str, Any]:
        """Times of steps and raw calls."""
        self._start("record", *COMPUTED_NOTHING, "--train-iters", str(COUNTED), null=True)
        self._start("time", *COMPUTED_NOTHING, "--train-iters", str(TIMED), null=True)
        return json.loads((self._folder / "times.json").read_text())


def host_time(times: dict[str, Any]) -> dict[str, Any]:
    """Columns of the table: medians in milliseconds, and of the ratios of neighbouring turns."""
    rows = times["rows"]
    keys = ("step", "operators", "calls_in_step", "calls_alone")
    columns = {f"{key}_ms": statistics.median(row[key] for row in rows) * 1e3 for key in keys}
    ratio, alone = (statistics.median(row["operators"] / row[key] for row in rows) for key in keys[2:])
    return {**columns, "calls": times["calls"], "ratio": ratio, "ratio_alone": alone}


def most_time(times: dict[str, Any]) -> str:
    """Operators that take most, in microseconds of a step."""
    spent: dict[str, list[float]] = defaultdict(list)
    for row in times["rows"]:
        for each in row["by_operator"]:
            spent[each["op"]].append(each["seconds"] * 1e6 / len(times["rows"]))
    most = sorted(spent.items(), key=lambda item: -sum(item[1]))[:12]
    return ", ".join(f"{op.partition('::')[2]} {sum(parts):.0f}" for op, parts in most)


def measure(report: Report, name: str, runs: Runs) -> None:
    """One row and two marks."""
    counts, deeper = runs.count(2), runs.count(4)
    rows, bus, device = counts["rows"], counts["bus"].values(), counts["simulator"]
    on_host = {row["op"]: row["calls"] for row in rows if row["route"] == "host"}
    times = runs.time()
    report.row(
        model=name,
        operators=sum(row["calls"] for row in rows if row["route"] != "composite"),
        host_calls=sum(on_host.values()),
        launches=device["kernels"],
        launches_per_layer=(deeper["simulator"]["kernels"] - device["kernels"]) / 2,
        compiled_online=device["aclop_kernels"],
        bytes_to_device=sum(cause["to_device_bytes"] for cause in bus),
        bytes_to_host=sum(cause["to_host_bytes"] for cause in bus),
        waits=sum(cause["synchronizations"] for cause in bus),
        device_waits=device["stream_syncs"] + device["device_syncs"] + device["event_syncs"],
        hccl_groups=device["comms"],
        **host_time(times),
    )
    report.summary[f"{name}: crosses the bus or waits"] = ", ".join(
        f"{cause} {row['to_device_calls']} in, {row['to_host_calls']} out, {row['synchronizations']} waits"
        for cause, row in counts["bus"].items()
    )
    report.summary[f"{name}: most launched"] = ", ".join(
        f"{op.removeprefix('aclnn')} {n}"
        for op, n in sorted(device["launches"].items(), key=lambda item: -item[1])[:12]
    )
    found = ", ".join(f"{op} x {n}" for op, n in on_host.items()) or "none"
    report.mark(f"{name}: no operator on the host", not on_host, found)
    ratio = report.rows[-1]["ratio"]
    report.mark(
        f"{name}: operators at most {MARK} x MindSpore's calls in the step", ratio <= MARK, f"{ratio:.2f}"
    )
    report.summary[f"{name}: most host time (us)"] = most_time(times)
    print(f"{name}: {report.rows[-1]}", flush=True)  # the table comes at the end


def main() -> int:
    """Runs the models; the exit code says whether every mark is met."""
    parser = arguments(__doc__)
    checkout_argument(parser)
    parser.add_argument("--only", action="append", metavar="TEXT", help="models with TEXT in their name")
    options = parser.parse_args()
    script = script_of(parser, options)
    report = Report("ascend_step", "A training step over the simulated CANN", options)
    cann = build.build()
    for name in QUICK if options.quick else MODELS:
        if options.only and not any(text in name for text in options.only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            measure(report, name, Runs(script, Path(folder), cann, MODELS[name]))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
