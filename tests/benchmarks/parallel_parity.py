"""Loss of Megatron's trainer under every parallel strategy against one rank with equal weights and batches.

    python -m tests.benchmarks.parallel_parity [--quick] [--only REGEX] [--json FILE] [--data DIR]

Float32, 50 iterations, one thread per rank. All runs start from one checkpoint that one rank wrote, because
Megatron draws the weights of pipeline stages and experts from seeds of their own. Mark: the loss of every
iteration within a relative difference of 1e-6 (1.5e-7 is measured).

With dropout, a curve of tensor parallel ranks equals that of one rank where both hold all values, and the
masks that 4 ranks draw (tests/distributed/dropout_rules.py) follow Megatron's rules.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "distributed")]

import dropout_rules  # noqa: E402
import ranks  # noqa: E402
from strategies import STRATEGIES, Strategy, flags, train  # noqa: E402

from tests.benchmarks.report import Report, arguments  # noqa: E402
from tests.reference.stock_script import data_flags, prepare_data  # noqa: E402

RATE = "--lr 1e-3 --min-lr 1e-4 --lr-decay-style cosine"
LIMIT = 1e-6


def curve(strategy: Strategy, data: Path, start: Path, folder: Path, iterations: int) -> list[float]:
    """Losses, as printed, of a run that begins with the weights in `start`."""
    rate = f"{RATE} --lr-warmup-iters {iterations // 10}"
    words = f"{rate} --train-iters {iterations} --load {start} --finetune".split()
    return list(train(strategy, [*flags(strategy, data_flags(data)), *words], folder).values())


def save_weights(model: str, data: Path, start: Path) -> None:
    """Writes weights of `model` to `start`: those of an iteration."""
    alone = Strategy(1, "", model)
    words = f"{RATE} --train-iters 1 --save {start} --save-interval 1 --no-save-optim --no-save-rng".split()
    train(alone, [*flags(alone, data_flags(data)), *words], start.parent)


def measure(options: argparse.Namespace, report: Report, folder: Path) -> None:
    """Trains every chosen strategy and its references; one row and one mark for each."""
    iterations = 5 if options.quick else 50
    data = options.data or folder / "data"
    prepare_data(data, vocab_size=1024)
    chosen = {
        name: strategy
        for name, strategy in STRATEGIES.items()
        if re.search(options.only, name) and (strategy.quick or not options.quick)
    }
    references = {}
    for model in dict.fromkeys(strategy.model for strategy in chosen.values()):
        save_weights(model, data, folder / model)
        alone = Strategy(1, "", model)
        references[model] = curve(alone, data, folder / model, folder, iterations)
    for name, strategy in chosen.items():
        print(f"{name} ...", flush=True)
        expected = references[strategy.model]
        try:
            found = curve(strategy, data, folder / strategy.model, folder, iterations)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            report.row(strategy=name, ranks=strategy.ranks)
            report.mark(f"{name}: trains", False, "failed, see above")
            continue
        print(f"  {found[-1]:.7f}, one rank {expected[-1]:.7f}", flush=True)
        differences = [abs(a - b) / b for a, b in zip(found, expected, strict=True)]
        report.row(
            strategy=name,
            ranks=strategy.ranks,
            last_loss=found[-1],
            one_rank=expected[-1],
            first_difference=differences[0],
            last_difference=differences[-1],
            largest_difference=max(differences),
        )
        largest = max(differences)
        report.mark(f"{name}: all {iterations} < {LIMIT}", largest < LIMIT, f"{largest:.1e}")
    for model, found in references.items():
        report.mark(f"{model}, one rank: the loss falls", found[-1] < found[0], f"to {found[-1]:.4f}")


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
