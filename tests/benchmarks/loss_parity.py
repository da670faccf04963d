"""Loss of the recipe over 50 iterations: route `auto`, route `host`, plain torch without our device.

    python -m tests.benchmarks.loss_parity [--quick] [--json FILE] [--data DIR]

Float32, Llama-style model, the standard library's sources. Marks, as relative differences: the first
iteration's loss within 1e-6, every iteration's within 1e-4, between each two of the three.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.report import Report, arguments  # noqa: E402

PRETRAIN = str(ROOT / "examples" / "pretrain_gpt.py")
PREPARE = str(ROOT / "examples" / "prepare_data.py")
ITERATIONS = 50
FIRST, ALL = 1e-6, 1e-4
TIMEOUT_SECONDS = 3600
# name -> (route or None for plain torch)
RUNS = {"plain torch": None, "host": "host", "auto": "auto"}
# hidden, ffn, layers, heads, sequence, micro batch, global batch
SIZES = {True: (256, 704, 4, 8, 128, 4, 8), False: (512, 1408, 8, 8, 256, 4, 8)}


def command(script: str, route: str | None) -> tuple[list[str], dict[str, str]]:
    """Command and environment that run `script` on a route, or on plain torch for None."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if route is None:
        return [sys.executable, "-m", "tests.reference.plain_torch", script], environment
    return [sys.executable, script], {**environment, "MINDSPEED_MS_ROUTE": route}


def run(script: str, route: str | None, flags: list[str]) -> None:
    """Runs `script` to its end; RuntimeError with the end of its output when it fails."""
    words, environment = command(script, route)
    done = subprocess.run(
        words + flags, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    )
    if done.returncode:
        raise RuntimeError(
            f"{script} on {route or 'plain torch'} failed:\n{done.stdout}{done.stderr}"[-4000:]
        )


def model_flags(quick: bool, data: Path, report: Path) -> list[str]:
    """Flags of the recipe for this benchmark."""
    hidden, ffn, layers, heads, length, micro, whole = SIZES[quick]
    return (
        f"--num-layers {layers} --hidden-size {hidden} --ffn-hidden-size {ffn} --num-attention-heads {heads} "
        f"--group-query-attention --num-query-groups {heads // 2} --swiglu --normalization RMSNorm "
        "--position-embedding-type rope --disable-bias-linear --untie-embeddings-and-output-weights "
        f"--attention-dropout 0 --hidden-dropout 0 --seq-length {length} --max-position-embeddings {length} "
        f"--micro-batch-size {micro} --global-batch-size {whole} --train-iters {ITERATIONS} --lr 3e-4 "
        "--min-lr 3e-5 --lr-decay-style cosine --lr-warmup-iters 5 --split 95,5,0 --num-workers 0 "
        f"--eval-iters 0 --log-interval 10 --data-path {data}/stdlib --tokenizer-type HuggingFaceTokenizer "
        f"--tokenizer-model {data}/tokenizer --use-cpu-initialization --report-dir {report}"
    ).split()


def relative(value: float, reference: float) -> float:
    """|value - reference| / |reference|."""
    return abs(value - reference) / abs(reference)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """The loss curve of each run, in full precision."""
    data = options.data or folder / "data"
    if not (data / "prepared.json").exists():
        run(PREPARE, None, ["--output-dir", str(data)])
    curves = {}
    for name, route in RUNS.items():
        report = folder / name.replace(" ", "_")
        print(f"training {ITERATIONS} iterations on {name} ...", flush=True)
        run(PRETRAIN, route, model_flags(options.quick, data, report))
        points = json.loads((report / "loss.json").read_text())["train"]
        curves[name] = [loss for _, loss in points]
    return curves


def main() -> int:
    """Command line; returns the exit code."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--data", type=Path, help="folder that examples/prepare_data.py wrote; default: made anew"
    )
    options = parser.parse_args()
    report = Report("loss_parity", "loss per token over 50 iterations, float32", options)
    with tempfile.TemporaryDirectory() as folder:
        curves = measure(options, Path(folder))
    reference = curves["plain torch"]
    for index, expected in enumerate(reference):
        row = {"iteration": index + 1, "plain torch": f"{expected:.7f}"}
        for name in ("host", "auto"):
            row[name] = f"{curves[name][index]:.7f}"
            row[f"{name} rel. diff"] = relative(curves[name][index], expected)
        report.row(**row)
    report.mark("the loss falls", reference[-1] < reference[0], f"{reference[0]:.3f} -> {reference[-1]:.3f}")
    pairs = (("host", "plain torch"), ("auto", "plain torch"), ("auto", "host"))
    for name, other in pairs:
        complete = len(curves[name]) == len(curves[other]) == ITERATIONS
        differences = [relative(a, b) for a, b in zip(curves[name], curves[other], strict=complete)]
        worst = max(differences)
        report.mark(
            f"{name} against {other}: first iteration < {FIRST}",
            differences[0] < FIRST,
            f"{differences[0]:.1e}",
        )
        report.mark(
            f"{name} against {other}: all {ITERATIONS} < {ALL}", complete and worst < ALL, f"{worst:.1e}"
        )
        report.summary[f"{name} against {other}: largest relative difference"] = worst
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
