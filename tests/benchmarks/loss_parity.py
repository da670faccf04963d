"""Loss of Megatron's trainer over 50 iterations: with fused kernels, without them, route `host`, plain torch.

    python -m tests.benchmarks.loss_parity [--quick] [--json FILE] [--data DIR]

Llama-style model, the standard library's sources; float32 and bfloat16. Marks, as relative differences:

* float32: the first iteration's loss within 1e-6 between each two runs, every iteration's within ten times
  what is measured between these two (LIMITS);
* bfloat16: every iteration's within 1e-2 of plain torch in bfloat16, and, as the mean over the iterations, no
  farther from plain torch in float32 than plain torch in bfloat16 itself, but for what its own rounding
  moves the curve by (MEAN);
* both: with fused kernels the same bounds as without.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.report import Report, arguments  # noqa: E402
from tests.reference.stock_script import (  # noqa: E402
    PLAIN,
    PLAIN_FLAGS,
    PRETRAIN,
    data_flags,
    prepare_data,
    train,
)

ITERATIONS = 50
FIRST = 1e-6
BFLOAT16_ALL = 1e-2
#: Mean distance from the float32 curve over plain torch's own: curves that round elsewhere scatter by this.
MEAN = 1.25
TIMEOUT_SECONDS = 3600
AUTO, COMPOSITE = "auto", "auto, no fused kernels"
THREADS = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
#: Run -> its environment; None for plain torch, without our device.
RUNS: dict[str, dict[str, str] | None] = {
    PLAIN: None,
    "host": {"MINDSPEED_MS_ROUTE": "host"},
    AUTO: {"MINDSPEED_MS_ROUTE": "auto"},
    COMPOSITE: {"MINDSPEED_MS_ROUTE": "composite"},
}
#: Largest relative difference of two float32 runs: with the same kernels, with and without the fused ones;
#: and where products are summed in another order.
LIMITS = {frozenset((PLAIN, "host")): 8e-7, frozenset((AUTO, COMPOSITE)): 5e-6}
OTHERWISE = 4e-5
#: dtype -> the runs made in it, and their flags.
DTYPES = {"float32": (tuple(RUNS), ""), "bfloat16": ((PLAIN, AUTO, COMPOSITE), "--bf16")}
# hidden, ffn, layers, heads, sequence, micro batch, global batch
SIZES = {True: (256, 704, 4, 8, 128, 4, 8), False: (512, 1408, 8, 8, 256, 4, 8)}


def model_flags(quick: bool, data: Path) -> list[str]:
    """Stock flags of this benchmark."""
    hidden, ffn, layers, heads, length, micro, whole = SIZES[quick]
    words = (
        f"--num-layers {layers} --hidden-size {hidden} --ffn-hidden-size {ffn} --num-attention-heads {heads} "
        f"--group-query-attention --num-query-groups {heads // 2} --swiglu --normalization RMSNorm "
        "--position-embedding-type rope --disable-bias-linear --untie-embeddings-and-output-weights "
        f"--attention-dropout 0 --hidden-dropout 0 --seq-length {length} --max-position-embeddings {length} "
        f"--micro-batch-size {micro} --global-batch-size {whole} --train-iters {ITERATIONS} --lr 3e-4 "
        "--min-lr 3e-5 --lr-decay-style cosine --lr-warmup-iters 5 --split 95,5,0 --num-workers 0 "
        "--eval-iters 0 --eval-interval 1000 --log-interval 1 --use-cpu-initialization"
    )
    return [*words.split(), *data_flags(data)]


def relative(value: float, reference: float) -> float:
    """|value - reference| / |reference|."""
    return abs(value - reference) / abs(reference)


def measure(options: argparse.Namespace, folder: Path) -> dict[tuple[str, str], list[float]]:
    """(dtype, run) -> its loss curve, as printed."""
    data = options.data or folder / "data"
    prepare_data(data)
    curves = {}
    for dtype, (names, flags) in DTYPES.items():
        for name in names:
            print(f"training {ITERATIONS} iterations in {dtype} on {name} ...", flush=True)
            setting, words = RUNS[name], [*model_flags(options.quick, data), *flags.split()]
            how: dict[str, Any] = {"way": "run", **setting} if setting else {"way": PLAIN}
            words += [] if setting else PLAIN_FLAGS
            run = train(PRETRAIN, words, folder, timeout=TIMEOUT_SECONDS, **THREADS, **how)
            curves[dtype, name] = list(run.losses.values())
            if run.error or len(run.losses) != ITERATIONS:
                raise RuntimeError(f"{name} in {dtype}: {run.error or len(run.losses)}\n{run.output[-4000:]}")
    return curves


def differences(curve: list[float], reference: list[float]) -> list[float]:
    """The relative difference of each iteration."""
    return [relative(a, b) for a, b in zip(curve, reference, strict=True)]


def judge_float32(report: Report, curves: dict[str, list[float]]) -> None:
    """Marks between each two of the float32 runs."""
    for other, name in itertools.combinations(curves, 2):
        found = differences(curves[name], curves[other])
        pair = f"float32: {name} against {other}"
        report.mark(f"{pair}: first iteration < {FIRST}", found[0] < FIRST, f"{found[0]:.1e}")
        limit = LIMITS.get(frozenset((other, name)), OTHERWISE)
        report.mark(f"{pair}: all {ITERATIONS} < {limit}", max(found) < limit, f"{max(found):.1e}")
        report.summary[f"{pair}: largest relative difference"] = max(found)


def judge_bfloat16(report: Report, curves: dict[str, list[float]], exact: list[float]) -> None:
    """Marks of the bfloat16 runs; `exact`: plain torch in float32."""
    distance = {name: statistics.fmean(differences(curve, exact)) for name, curve in curves.items()}
    for name, curve in curves.items():
        report.summary[f"bfloat16: {name}: mean relative distance from float32"] = distance[name]
        if name == PLAIN:
            continue
        worst = max(differences(curve, curves[PLAIN]))
        report.mark(
            f"bfloat16: {name} against {PLAIN}: all {ITERATIONS} < {BFLOAT16_ALL}",
            worst < BFLOAT16_ALL,
            f"{worst:.1e}",
        )
        report.mark(
            f"bfloat16: {name}: mean distance from float32 <= {MEAN} x that of {PLAIN}",
            distance[name] <= MEAN * distance[PLAIN],
            f"{distance[name]:.1e} and {distance[PLAIN]:.1e}",
        )
        report.summary[f"bfloat16: {name} against {PLAIN}: largest relative difference"] = worst


def main() -> int:
    """Command line; returns the exit code."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--data", type=Path, help="folder that examples/prepare_data.py wrote; default: made anew"
    )
    options = parser.parse_args()
    report = Report("loss_parity", "loss per token over 50 iterations", options)
    with tempfile.TemporaryDirectory() as folder:
        curves = measure(options, Path(folder))
    for index in range(ITERATIONS):
        row = {f"{dtype}, {name}": f"{curve[index]:.7f}" for (dtype, name), curve in curves.items()}
        report.row(iteration=index + 1, **row)
    for (dtype, name), curve in curves.items():
        report.mark(
            f"{dtype}: the loss falls on {name}", curve[-1] < curve[0], f"{curve[0]:.3f} -> {curve[-1]:.3f}"
        )
    judge_float32(report, {name: c for (dtype, name), c in curves.items() if dtype == "float32"})
    narrow = {name: c for (dtype, name), c in curves.items() if dtype == "bfloat16"}
    judge_bfloat16(report, narrow, curves["float32", PLAIN])
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
