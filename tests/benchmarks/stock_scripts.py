"""Stock ``pretrain_gpt.py`` of a Megatron-LM checkout, none of its lines edited, against plain torch CPU.

    python tests/benchmarks/stock_scripts.py --megatron-lm-path DIR [--quick] [--json FILE]

The cases are in stock_cases.py. A case is held against a recorded curve of the same script and flags on plain
torch and gloo; where plain CPU cannot run it, against our route ``host`` on one rank, from whose checkpoint a
parallel case starts. The mark of a case: its losses of 20 iterations within 3e-6 (fp32) or 1.5e-3 (bf16)
relative.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.report import Report, arguments
from tests.benchmarks.stock_cases import FULL, ITERATIONS, MODELS, QUICK, RECORD, RESHARDABLE, SAVED, Case
from tests.reference import stock_script
from tests.reference.stock_script import MOCK, MODEL, Run, train

LOCAL = ("--transformer-impl", "local")
AVERAGED = 2
"""This line shows the mean of two losses (stock_script.losses): a resumed run is not compared there."""


class Runs:
    """Runs cases of one checkout; the references are run once, when a case first needs them."""

    def __init__(self, script: Path, folder: Path, timeout: float) -> None:
        self.script, self.folder, self.timeout = script, folder, timeout
        self._record = json.loads(RECORD.read_text())
        self._references: dict[str, Run] = {}

    def reference(self, model: str) -> tuple[Run, Path]:
        """The run of ``model`` on one rank, route ``host``, and the folder of its checkpoint."""
        folder = self.folder / model.replace(" ", "_")
        checkpoint = folder / "checkpoint"
        if model not in self._references:
            folder.mkdir()
            flags = [*self._flags(model), "--save", str(checkpoint), "--save-interval", str(SAVED)]
            self._references[model] = train(
                self.script, flags, folder, timeout=self.timeout, MINDSPEED_MS_ROUTE="host"
            )
        return self._references[model], checkpoint

    def _flags(self, model: str) -> list[str]:
        return [*MODEL, *MOCK, *RESHARDABLE, *MODELS[model].split(), "--train-iters", str(ITERATIONS)]

    def _recorded_flags(self, case: Case) -> list[str]:
        flags = f"{self._record['base_flags']} {self._record['curves'][case.curve]['extra_flags']}"
        if case.spec == "default":
            flags = flags.replace(" ".join(LOCAL), "")
        return [flag for flag in flags.split() if flag not in case.drop]

    def run(self, case: Case) -> tuple[Run, dict[int, float]]:
        """The run of ``case`` and the losses it should have."""
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            start = functools.partial(
                train, self.script, folder=Path(scratch), ranks=case.ranks, way=case.way, timeout=self.timeout
            )
            if case.curve:
                curve = self._record["curves"][case.curve]["loss"]
                return start(flags=self._recorded_flags(case)), dict(enumerate(curve, 1))
            reference, checkpoint = self.reference(case.model)
            if reference.error:
                return Run({}, f"the reference failed: {reference.error}", reference.output), {}
            if not case.parallel:
                return start(flags=self._flags(case.model)), reference.losses
            load = ["--load", str(checkpoint), "--ckpt-step", str(SAVED), *case.parallel.split()]
            left_out = (*range(1, SAVED + 1), SAVED + AVERAGED)
            expected = {i: loss for i, loss in reference.losses.items() if i not in left_out}
            return start(flags=[*self._flags(case.model), *load]), expected


def main() -> int:
    """Run the cases; the exit code says whether every mark is met."""
    parser = arguments(__doc__)
    parser.add_argument("--megatron-lm-path", type=Path, required=True, metavar="DIR", help="a checkout")
    parser.add_argument("--only", action="append", metavar="TEXT", help="cases with TEXT in their name")
    parser.add_argument("--timeout", type=float, default=400, help="seconds allowed for one run")
    options = parser.parse_args()
    script = (options.megatron_lm_path / "pretrain_gpt.py").resolve()
    if not script.is_file():
        parser.error(f"{script} does not exist")
    report = Report("stock_scripts", "Stock pretrain_gpt.py against plain torch CPU", options)
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(script, Path(folder), options.timeout)
        for case in QUICK if options.quick else FULL:
            if not options.only or any(text in case.name for text in options.only):
                measure(report, runs, case)
    return report.finish()


def measure(report: Report, runs: Runs, case: Case) -> None:
    """One row and one mark."""
    start = time.perf_counter()
    run, expected = runs.run(case)
    worst = stock_script.deviation(run.losses, expected)
    report.row(
        case=case.name,
        spec=case.spec,
        start=case.way,
        ranks=case.ranks,
        reference="recorded" if case.curve else "host, one rank",
        iterations=len(expected),
        deviation=worst if worst != float("inf") else None,
        limit=case.limit,
        seconds=round(time.perf_counter() - start, 1),
        error=run.error or None,
    )
    found = run.error or f"{worst:.1e}"
    what = f"{case.name} ({case.spec} spec, {case.way}): losses within {case.limit:g}"
    print(f"{what}: {found}", flush=True)  # the table comes at the end, which may be half an hour away
    report.mark(what, worst <= case.limit and not run.error, found)


if __name__ == "__main__":
    sys.exit(main())
