"""Stock ``pretrain_gpt.py`` on target Ascend (MindSpore's backend, simulated CANN) against plain torch.

    python -m tests.benchmarks.ascend_parity --megatron-lm-path DIR [--quick] [--only TEXT] [--json FILE]

None of the script's lines is edited. The reference of a recipe is plain torch on one rank, gloo, nothing of
this package: it trains 23 iterations and saves after the second. A case on one rank trains them from the
start; one on several ranks goes on from that checkpoint, as does one with grouped GEMM, whose weights plain
torch cannot draw. Marks of a case, over 20 iterations at least: the largest relative difference of a loss,
1e-5 in float32, 2e-3 in bfloat16; no operator on the host. A resumed case ends half way and goes on from what
it saved.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.report import Report, arguments
from tests.benchmarks.stock_cases import RESHARDABLE, SAVED
from tests.cann import build
from tests.cann.run import environment
from tests.reference import stock_script
from tests.reference.stock_script import AVERAGED, MOCK, MODEL, PLAIN, PLAIN_FLAGS, Run, train

LIMITS = {"fp32": 1e-5, "bf16": 2e-3}
ITERATIONS = 23
HALF = 12
HCCL_TIMEOUT = 60
"""Seconds after which the simulator reports a rendezvous as a deadlock, with both calls."""
SMALL = (
    "--num-layers 2 --hidden-size 64 --seq-length 64 --max-position-embeddings 64 --vocab-size 255 "
    f"--train-iters {ITERATIONS} --distributed-timeout-minutes 3"
)
"""Megatron's own timeout is beyond the simulator's."""

_LLAMA = (
    "--swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear "
    "--untie-embeddings-and-output-weights --group-query-attention --num-query-groups 2"
)
RECIPES = {
    "GPT-2": "",
    "GPT-2, 4 layers": "--num-layers 4",
    "Llama": _LLAMA,
    "MoE": f"{_LLAMA} --num-experts 4 --moe-router-topk 2 --moe-router-load-balancing-type aux_loss "
    "--moe-aux-loss-coeff 1e-2 --moe-token-dispatcher-type alltoall",
    "MLA": "--multi-latent-attention --kv-lora-rank 32 --q-lora-rank 64 --qk-head-dim 32 "
    "--qk-pos-emb-head-dim 16 --v-head-dim 32 --normalization RMSNorm --swiglu --disable-bias-linear",
    "MTP": f"{_LLAMA} --mtp-num-layers 1",
}


@dataclass(frozen=True)
class Case:
    """One run. ``extra``: flags beyond the reference's; ``asynchronous``: streams are, with random delays."""

    recipe: str
    dtype: str = "fp32"
    extra: str = ""
    ranks: int = 1
    asynchronous: bool = False
    resume: bool = False

    @property
    def name(self) -> str:
        """Name in the table."""
        return ", ".join(filter(None, (self.recipe, self.extra, "resumed" if self.resume else "")))


_TP2 = "--tensor-model-parallel-size 2 --sequence-parallel"
_PP2 = "--pipeline-model-parallel-size 2"
_VPP = f"{_PP2} --num-layers-per-virtual-pipeline-stage 1"
_DP2 = "--overlap-grad-reduce --overlap-param-gather"
_CP2 = "--context-parallel-size 2"
_GROUPED = "--moe-grouped-gemm"
# Megatron saves a random state for each data parallel rank with expert parallelism, and one without
_EP2 = f"{_GROUPED} --expert-model-parallel-size 2 --no-load-rng"

QUICK = (
    Case("GPT-2"),
    Case("Llama", "bf16", asynchronous=True),
    Case("GPT-2", extra=_TP2, ranks=2),
)
FULL = (
    *(Case(recipe, dtype) for recipe in ("GPT-2", "Llama", "MoE", "MLA", "MTP") for dtype in LIMITS),
    *(Case("MoE", dtype, _GROUPED) for dtype in LIMITS),
    *(Case(recipe, "bf16", asynchronous=True) for recipe in ("GPT-2", "Llama", "MLA")),
    Case("MoE", "bf16", _GROUPED, asynchronous=True),
    Case("GPT-2", extra=_TP2, ranks=2),
    Case("GPT-2, 4 layers", extra=_PP2, ranks=2),
    Case("GPT-2, 4 layers", extra=_VPP, ranks=2),
    Case("GPT-2", extra=_DP2, ranks=2),
    Case("GPT-2", extra=_CP2, ranks=2),
    Case("MoE", extra=_EP2, ranks=2),
    Case("Llama", "bf16", _TP2, ranks=2, asynchronous=True),
    Case("GPT-2, 4 layers", "bf16", _VPP, ranks=2, asynchronous=True),
    Case("Llama", "bf16", _DP2, ranks=2, asynchronous=True),
    Case("Llama", "bf16", _CP2, ranks=2, asynchronous=True),
    Case("MoE", "bf16", _EP2, ranks=2, asynchronous=True),
    Case("GPT-2, 4 layers", extra=f"{_TP2} {_PP2}", ranks=4),
    Case("GPT-2, 4 layers", "bf16", f"{_TP2} {_PP2}", ranks=4, asynchronous=True),
    Case("Llama", "bf16", resume=True),
    Case("GPT-2", extra=f"{_TP2}", ranks=2, resume=True),
    Case("GPT-2", extra=_DP2, ranks=2, resume=True, asynchronous=True),
)


@dataclass(frozen=True)
class Outcome:
    """What a case gave, the losses it should have, and its calls of operators on the host by name.

    ``host`` is None where a rank wrote no coverage.
    """

    run: Run
    expected: dict[int, float]
    host: dict[str, int] | None


class Runs:
    """Runs of one checkout; a reference is run once, when a case first needs it."""

    def __init__(self, script: Path, folder: Path, timeout: float, cann: Path) -> None:
        self._script, self._folder, self._timeout, self._cann = script, folder, timeout, cann
        self._references: dict[tuple[str, str], Run] = {}

    def _flags(self, case: Case) -> list[str]:
        dtype = ["--bf16"] if case.dtype == "bf16" else []
        return [*MODEL, *MOCK, *SMALL.split(), *RESHARDABLE, *RECIPES[case.recipe].split(), *dtype]

    def _reference(self, case: Case) -> tuple[Run, Path]:
        folder = self._folder / f"{case.recipe} {case.dtype}".replace(" ", "_").replace(",", "")
        checkpoint = folder / "checkpoint"
        key = (case.recipe, case.dtype)
        if key not in self._references:
            folder.mkdir()
            flags = [
                *self._flags(case),
                *PLAIN_FLAGS,
                "--save",
                str(checkpoint),
                "--save-interval",
                str(SAVED),
            ]
            self._references[key] = train(self._script, flags, folder, way=PLAIN, timeout=self._timeout)
        return self._references[key], checkpoint

    def run(self, case: Case) -> Outcome:
        """The run of ``case`` on the simulator."""
        reference, checkpoint = self._reference(case)
        if reference.error:
            return Outcome(Run({}, f"the reference failed: {reference.error}", reference.output), {}, None)
        flags, left_out = [*self._flags(case), *case.extra.split()], set()
        if case.extra:
            flags += ["--load", str(checkpoint), "--ckpt-step", str(SAVED)]
            left_out = {*range(1, SAVED + 1), SAVED + AVERAGED}
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            folder = Path(scratch)
            base = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
            start = functools.partial(
                train,
                self._script,
                folder=folder,
                ranks=case.ranks,
                way="run" if case.ranks == 1 else "torchrun",
                timeout=self._timeout,
                MINDSPEED_MS_COVERAGE=str(folder / "coverage.json"),
                CANNSIM_HCCL_TIMEOUT=str(HCCL_TIMEOUT),
                **environment(self._cann, asynchronous=case.asynchronous, base=base),
            )
            if case.resume:
                run = self._in_two_parts(start, flags, folder / "half")
                left_out.add(HALF + AVERAGED)
            else:
                run = start(flags)
            host = host_calls(folder, case.ranks)
        expected = {i: loss for i, loss in reference.losses.items() if i not in left_out}
        return Outcome(run, expected, host)

    @staticmethod
    def _in_two_parts(start: functools.partial[Run], flags: list[str], saved: Path) -> Run:
        save = ["--save", str(saved), "--save-interval", str(HALF), "--exit-interval", str(HALF)]
        first = start([*flags, *save])
        if first.error:
            return first
        second = start([*flags, "--load", str(saved), "--ckpt-step", str(HALF)])  # the later --load wins
        return dataclasses.replace(second, losses={**first.losses, **second.losses})


def host_calls(folder: Path, ranks: int) -> dict[str, int] | None:
    """Operator -> its calls on route host, over all ranks; None unless all wrote coverage to ``folder``."""
    reports = list(folder.glob("coverage*.json"))
    if len(reports) != ranks:
        return None
    found: dict[str, int] = {}
    for path in reports:
        for row in json.loads(path.read_text())["rows"]:
            if row["route"] == "host":
                found[row["op"]] = found.get(row["op"], 0) + row["calls"]
    return found


def measure(report: Report, runs: Runs, case: Case) -> None:
    """One row and two marks."""
    start = time.perf_counter()
    outcome = runs.run(case)
    worst = stock_script.deviation(outcome.run.losses, outcome.expected)
    limit, error, host = LIMITS[case.dtype], outcome.run.error, outcome.host
    streams = "asynchronous" if case.asynchronous else "in order"
    report.row(
        case=case.name,
        dtype=case.dtype,
        ranks=case.ranks,
        streams=streams,
        iterations=len(outcome.expected),
        deviation=worst if worst != float("inf") else None,
        limit=limit,
        host_calls=None if host is None else sum(host.values()),
        seconds=round(time.perf_counter() - start, 1),
        error=error or None,
    )
    what, found = f"{case.name} ({case.dtype}, {streams})", error or f"{worst:.1e}"
    on_host = "unknown" if host is None else ", ".join(f"{op} x {n}" for op, n in host.items()) or "none"
    print(f"{what}: {found}; on the host: {on_host}", flush=True)  # the table comes at the end
    report.mark(f"{what}: losses within {limit:g}", worst <= limit and not error, found)
    report.mark(f"{what}: no operator on the host", host == {}, on_host)


def checkout_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --megatron-lm-path, by default MEGATRON_LM_PATH."""
    given = os.environ.get("MEGATRON_LM_PATH")
    parser.add_argument(
        "--megatron-lm-path", type=Path, metavar="DIR", default=given and Path(given), help="a checkout"
    )


def script_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Path:
    """``pretrain_gpt.py`` of the checkout; ends the program where there is none."""
    script = ((options.megatron_lm_path or Path()) / "pretrain_gpt.py").resolve()
    if not script.is_file():
        parser.error(f"{script} does not exist: name a checkout with --megatron-lm-path or MEGATRON_LM_PATH")
    return script


def main() -> int:
    """Runs the cases; the exit code says whether every mark is met."""
    parser = arguments(__doc__)
    checkout_argument(parser)
    parser.add_argument("--only", action="append", metavar="TEXT", help="cases with TEXT in their name")
    parser.add_argument("--timeout", type=float, default=400, help="seconds allowed for one run")
    options = parser.parse_args()
    script = script_of(parser, options)
    report = Report(
        "ascend_parity", "Stock pretrain_gpt.py over the simulated CANN against plain torch", options
    )
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(script, Path(folder), options.timeout, build.build())
        for case in QUICK if options.quick else FULL:
            if not options.only or any(text in case.name for text in options.only):
                measure(report, runs, case)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
