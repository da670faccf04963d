"""Loss of the recipe under every parallel strategy against one rank with the same weights and batches.

    python -m tests.benchmarks.parallel_parity [--quick] [--only REGEX] [--json FILE] [--data DIR]

Float32, 50 iterations, one thread per rank. All runs start from one checkpoint that one rank wrote, because
Megatron draws the weights of pipeline stages and experts from seeds of their own. Marks, as relative
differences of the loss: the first iteration within 1e-5, the last within 1e-3.

With dropout, a curve of tensor parallel ranks equals that of one rank where both hold all values, and the
masks that 4 ranks draw (tests/distributed/dropout_rules.py) follow Megatron's rules.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "distributed")]

import dropout_rules  # noqa: E402
import ranks  # noqa: E402

from tests.benchmarks.report import Report, arguments  # noqa: E402

PRETRAIN = str(ROOT / "examples" / "pretrain_gpt.py")
PREPARE = str(ROOT / "examples" / "prepare_data.py")
FIRST, LAST = 1e-5, 1e-3
TIMEOUT_SECONDS = 900
VOCABULARY_MULTIPLE = 128
MODEL = (
    "--num-layers 4 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 4 --seq-length 64 "
    "--group-query-attention --num-query-groups 2 --swiglu --normalization RMSNorm --disable-bias-linear "
    "--position-embedding-type rope --untie-embeddings-and-output-weights --max-position-embeddings 64 "
    "--micro-batch-size 2 --global-batch-size 8 --split 95,5,0 --num-workers 0 --eval-iters 0 "
    "--log-interval 10 --attention-dropout 0 --distributed-timeout-minutes 2"
)
RATE = "--lr 1e-3 --min-lr 1e-4 --lr-decay-style cosine --lr-warmup-iters 5"
EXPERTS = "--num-experts 4 --moe-router-topk 2 --moe-aux-loss-coeff 1e-2 --moe-token-dispatcher-type alltoall"
MODELS = {
    "dense": "--hidden-dropout 0",
    "experts": f"--hidden-dropout 0 {EXPERTS}",
    "dropout": "--hidden-dropout 0.1",
}
"""What distinguishes the models; each has a reference on one rank."""

TP2, PP2, EP2 = (f"--{kind}-model-parallel-size 2" for kind in ("tensor", "pipeline", "expert"))
SP = "--sequence-parallel"
OPTIMIZER = "--use-distributed-optimizer"
CONTEXT = "--context-parallel-size 2 --cp-comm-type"


@dataclass(frozen=True)
class Strategy:
    """Ranks and flags of one way to train one of `MODELS`; `quick`: part of the quick run."""

    ranks: int
    flags: str
    model: str = "dense"
    quick: bool = False


STRATEGIES = {
    "TP2": Strategy(2, TP2),
    "TP2 + SP": Strategy(2, f"{TP2} {SP}", quick=True),
    "PP2": Strategy(2, PP2),
    "PP2 + VPP": Strategy(2, f"{PP2} --num-layers-per-virtual-pipeline-stage 1", quick=True),
    "DP2": Strategy(2, ""),
    "DP2 + distributed optimizer": Strategy(2, OPTIMIZER),
    "DP2 + both overlaps": Strategy(
        2, f"{OPTIMIZER} --overlap-grad-reduce --overlap-param-gather", quick=True
    ),
    "CP2, ring": Strategy(2, f"{CONTEXT} p2p", quick=True),
    "CP2, all-gather": Strategy(2, f"{CONTEXT} allgather"),
    "CP2, all-to-all": Strategy(2, f"{CONTEXT} a2a"),
    "EP2": Strategy(2, EP2, "experts", quick=True),
    "EP2 x TP2 + SP": Strategy(4, f"{EP2} {TP2} {SP} --expert-tensor-parallel-size 1", "experts"),
    "TP2 x DP2": Strategy(4, TP2),
    "TP2 x PP2": Strategy(4, f"{TP2} {PP2}"),
    "TP2 x CP2 + SP": Strategy(4, f"{TP2} {SP} {CONTEXT} p2p"),
    "TP2 x PP2 x DP2": Strategy(8, f"{TP2} {PP2} {OPTIMIZER}"),
    "TP2, hidden dropout": Strategy(2, TP2, "dropout"),
}


def run(processes: int, words: list[str]) -> None:
    """Runs a Python program on `processes` ranks of one thread; RuntimeError with the end of its output."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}"[-6000:])


def flags(strategy: Strategy, data: Path) -> list[str]:
    """Flags for model and data; the vocabulary is padded alike for all tensor parallel sizes."""
    multiple = VOCABULARY_MULTIPLE // (2 if TP2 in strategy.flags else 1)
    return (
        f"{MODEL} {MODELS[strategy.model]} {strategy.flags} --data-path {data}/stdlib "
        f"--tokenizer-type HuggingFaceTokenizer --tokenizer-model {data}/tokenizer "
        f"--make-vocab-size-divisible-by {multiple}"
    ).split()


def curve(strategy: Strategy, data: Path, start: Path, report: Path, iterations: int) -> list[float]:
    """Losses in full precision of a run that begins with the weights in `start`."""
    words = f"{RATE} --train-iters {iterations} --load {start} --finetune --report-dir {report}".split()
    run(strategy.ranks, [PRETRAIN, *flags(strategy, data), *words])
    points = json.loads((report / "loss.json").read_text())["train"]
    return [loss for _, loss in points]


def save_weights(model: str, data: Path, start: Path) -> None:
    """Writes fresh weights of `model` to `start`: those of an iteration whose rate is zero."""
    words = (
        f"--lr 0 --min-lr 0 --train-iters 1 --save {start} --save-interval 1 --no-save-optim --no-save-rng"
    )
    run(1, [PRETRAIN, *flags(Strategy(1, "", model), data), *words.split()])


def measure(options: argparse.Namespace, report: Report, folder: Path) -> None:
    """Trains every chosen strategy and its references; one row and two marks for each."""
    iterations = 5 if options.quick else 50
    data = options.data or folder / "data"
    if not (data / "prepared.json").exists():
        run(1, [PREPARE, "--output-dir", str(data), "--vocab-size", "1024"])
    chosen = {
        name: strategy
        for name, strategy in STRATEGIES.items()
        if re.search(options.only, name) and (strategy.quick or not options.quick)
    }
    references = {}
    for model in dict.fromkeys(strategy.model for strategy in chosen.values()):
        save_weights(model, data, folder / model)
        alone = Strategy(1, "", model)
        references[model] = curve(alone, data, folder / model, folder / f"{model}-curve", iterations)
    for index, (name, strategy) in enumerate(chosen.items()):
        print(f"{name} ...", flush=True)
        expected = references[strategy.model]
        try:
            losses = curve(strategy, data, folder / strategy.model, folder / f"{index}-curve", iterations)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(error, file=sys.stderr)
            report.row(strategy=name, ranks=strategy.ranks)
            report.mark(f"{name}: trains", False, "failed, see above")
            continue
        differences = [abs(a - b) / b for a, b in zip(losses, expected, strict=True)]
        report.row(
            strategy=name,
            ranks=strategy.ranks,
            last_loss=losses[-1],
            one_rank=expected[-1],
            first_difference=differences[0],
            last_difference=differences[-1],
            largest_difference=max(differences),
        )
        report.mark(f"{name}: iteration 1 < {FIRST}", differences[0] < FIRST, f"{differences[0]:.1e}")
        last = differences[-1]
        report.mark(f"{name}: iteration {iterations} < {LAST}", last < LAST, f"{last:.1e}")
    for model, losses in references.items():
        report.mark(f"{model}, one rank: the loss falls", losses[-1] < losses[0], f"to {losses[-1]:.4f}")


def main() -> int:
    """Command line; returns the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("--only", default="", metavar="REGEX", help="strategies whose name matches")
    parser.add_argument(
        "--data", type=Path, help="folder that examples/prepare_data.py wrote; default: made anew"
    )
    options = parser.parse_args()
    report = Report("parallel_parity", "loss per token against one rank, float32", options)
    with tempfile.TemporaryDirectory() as folder:
        measure(options, report, Path(folder))
    for rule, holds in dropout_rules.rules(ranks.run(dropout_rules.observe, 4, timeout=300)).items():
        report.mark(f"dropout: {rule}", holds, "holds" if holds else "violated")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
