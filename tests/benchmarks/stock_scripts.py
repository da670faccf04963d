"""Stock ``pretrain_gpt.py`` of a Megatron-LM checkout, none of its lines edited, against plain torch CPU.

    python tests/benchmarks/stock_scripts.py --megatron-lm-path DIR [--quick] [--json FILE]
        [--older-megatron-lm-path DIR]

The cases are in stock_cases.py. The reference of a case is the same script of the same checkout and the same
model on plain torch, one rank; a parallel case starts from its checkpoint. The mark of a case: its losses of
20 iterations within 1e-6 (fp32) or 2e-4 (bf16) relative. With the older checkout, plain torch and the case
both load a checkpoint that plain torch saved there.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.report import Report, arguments
from tests.benchmarks.stock_cases import (
    FULL,
    ITERATIONS,
    MODELS,
    PLAIN_LACKS,
    QUICK,
    RESHARDABLE,
    SAVED,
    Case,
)
from tests.reference import stock_script
from tests.reference.stock_script import AVERAGED, MOCK, MODEL, PLAIN, PLAIN_FLAGS, Run, train


class Runs:
    """Runs cases of one checkout; a reference is run once, when a case first needs it."""

    def __init__(self, script: Path, older: Path | None, folder: Path, timeout: float) -> None:
        self._script, self._older, self._folder, self._timeout = script, older, folder, timeout
        self._references: dict[tuple[Path, str, bool], Run] = {}

    def _checkpoint(self, script: Path, model: str) -> Path:
        return self._folder / script.parent.name / model.replace(" ", "_")

    def _plain(self, script: Path, model: str, *, loads: bool = False) -> Run:
        """``model`` on plain torch, one rank: from the start, saving; or from the older checkout's save."""
        key = (script, model, loads)
        if key not in self._references:
            flags = [flag for flag in self._flags(model) if flag not in PLAIN_LACKS] + [*PLAIN_FLAGS]
            flags += self._load(model, older=True) if loads else self._save(script, model)
            self._references[key] = train(script, flags, self._folder, way=PLAIN, timeout=self._timeout)
        return self._references[key]

    def _save(self, script: Path, model: str) -> list[str]:
        return ["--save", str(self._checkpoint(script, model)), "--save-interval", str(SAVED)]

    def _load(self, model: str, *, older: bool) -> list[str]:
        script = self._older if older and self._older else self._script
        return ["--load", str(self._checkpoint(script, model)), "--ckpt-step", str(SAVED)]

    def _flags(self, model: str) -> list[str]:
        return [*MODEL, *MOCK, *RESHARDABLE, *MODELS[model].split(), "--train-iters", str(ITERATIONS)]

    def run(self, case: Case) -> tuple[Run, dict[int, float]]:
        """The run of ``case`` and the losses it should have."""
        saver = self._older if case.older and self._older else self._script
        reference = self._plain(saver, case.model)
        if case.older and not reference.error:
            reference = self._plain(self._script, case.model, loads=True)
        if reference.error:
            return Run({}, f"the reference failed: {reference.error}", reference.output), {}
        flags = [*self._flags(case.model), *case.parallel.split()]
        flags += ["--transformer-impl", "local"] if case.spec == "local" else []
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            start = functools.partial(
                train,
                self._script,
                folder=Path(scratch),
                ranks=case.ranks,
                way=case.way,
                timeout=self._timeout,
            )
            load = self._load(case.model, older=case.older)
            if case.resumed:
                saved = start(flags=[*flags, "--save", scratch, "--save-interval", str(SAVED)])
                if saved.error:
                    return saved, {}
                load = ["--load", scratch, "--ckpt-step", str(SAVED)]
            left_out = (*range(1, SAVED + 1), SAVED + AVERAGED) if case.loads else ()
            expected = {i: loss for i, loss in reference.losses.items() if i not in left_out}
            return start(flags=[*flags, *load] if case.loads else flags), expected


def main() -> int:
    """Run the cases; the exit code says whether every mark is met."""
    parser = arguments(__doc__)
    parser.add_argument("--megatron-lm-path", type=Path, required=True, metavar="DIR", help="a checkout")
    parser.add_argument(
        "--older-megatron-lm-path", type=Path, metavar="DIR", help="whose checkpoints are loaded"
    )
    parser.add_argument("--only", action="append", metavar="TEXT", help="cases with TEXT in their name")
    parser.add_argument("--timeout", type=float, default=400, help="seconds allowed for one run")
    options = parser.parse_args()
    script = (options.megatron_lm_path / "pretrain_gpt.py").resolve()
    if not script.is_file():
        parser.error(f"{script} does not exist")
    report = Report("stock_scripts", "Stock pretrain_gpt.py against plain torch CPU", options)
    with tempfile.TemporaryDirectory() as folder:
        older = options.older_megatron_lm_path
        runs = Runs(script, older and (older / script.name).resolve(), Path(folder), options.timeout)
        for case in QUICK if options.quick else FULL:
            chosen = not options.only or any(text in case.name for text in options.only)
            if chosen and (older or not case.older):
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
