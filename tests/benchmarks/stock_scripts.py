"""Stock ``pretrain_gpt.py`` of a Megatron-LM checkout, unmodified, against curves of plain torch CPU.

    python tests/benchmarks/stock_scripts.py --megatron-lm-path DIR --curves FILE [--quick] [--json FILE]

FILE holds curves of the same script on plain torch and gloo, with their flags and losses. Each case trains 20
iterations in processes of its own, started by ``mindspeed-ms run`` (torchrun for several ranks), with the
local and with the default (Transformer Engine) layer spec. The mark of a case: all 20 losses within 1e-4
(fp32) or 1e-2 (bf16) relative of the curve.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.report import Report, arguments

LOCAL = "--transformer-impl local"
LOSS = re.compile(r"\| lm loss: ([-+.\dEe]+|nan) \|")
LIMIT = {"fp32": 1e-4, "bf16": 1e-2}


@dataclass(frozen=True)
class Case:
    """A recorded curve and how its command line is run: ``spec`` local or default, ``launch`` of LAUNCHES."""

    curve: str
    spec: str = "local"
    launch: str = "run"
    extra: str = ""

    @property
    def name(self) -> str:
        """Name in the table."""
        return " ".join(filter(None, (self.curve, self.spec, self.launch, self.extra)))


QUICK = (
    Case("tp1"),
    Case("tp1", "default", "autoload"),
    Case("llama_tp1", "default"),
)
FULL = (
    *QUICK,
    Case("tp1", launch="torchrun"),
    Case("tp1", launch="import"),
    Case("tp1_bf16"),
    Case("tp1_bf16", "default"),
    Case("llama_tp1"),
    Case("moe_tp1"),
    Case("moe_tp1", "default"),
    Case("moe_tp1", "default", extra="--moe-grouped-gemm"),
    Case("dp2"),
    Case("dp2_distopt"),
    Case("dp2_distopt_overlap"),
    Case("pp2"),
    Case("moe_ep2"),
)


def command(
    case: Case, script: Path, curves: dict[str, Any], scratch: Path
) -> tuple[list[str], dict[str, str]]:
    """Command line of a case, and the environment variables it adds; ``import`` writes a script."""
    curve = curves["curves"][case.curve]
    flags = f"{curves['base_flags']} {curve['extra_flags']} {case.extra}".split()
    if case.spec == "default":
        flags = " ".join(flags).replace(LOCAL, "").split()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", str(curve["nproc"])]
    if case.launch == "run" and curve["nproc"] == 1:
        return [sys.executable, "-m", "mindspeed_ms.cli", "run", str(script), *flags], {}
    if case.launch in ("run", "torchrun"):
        return [*torchrun, "-m", "mindspeed_ms.run", str(script), *flags], {}
    path = {"PYTHONPATH": os.pathsep.join(filter(None, (str(script.parent), os.environ.get("PYTHONPATH"))))}
    if case.launch == "autoload":
        return [*torchrun, str(script), *flags], {**path, "MINDSPEED_MS_AUTOLOAD": "1"}
    edited = scratch / script.name
    edited.write_text("import mindspeed_ms.patch\n" + script.read_text())
    return [*torchrun, str(edited), *flags], path


def losses(output: str) -> list[float]:
    """The training losses that Megatron printed, in order."""
    return [float(value) for value in LOSS.findall(output)]


def deviation(measured: list[float], expected: list[float]) -> float:
    """Largest relative difference; infinite unless there are as many losses as expected. Keeps a nan."""
    if len(measured) != len(expected) or any(value != value for value in measured):
        return float("inf")
    return max(abs(a - b) / abs(b) for a, b in zip(measured, expected, strict=True))


def run(
    case: Case, script: Path, curves: dict[str, Any], scratch: Path, timeout: float
) -> tuple[list[float], str]:
    """Train one case. Returns its losses and, if the run failed, the last error line (else "")."""
    words, added = command(case, script, curves, scratch)
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    clean = {k: v for k, v in os.environ.items() if k not in launcher}
    environment = {"OMP_NUM_THREADS": "1", **clean, **added}
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=timeout, env=environment, cwd=scratch
        )
    except subprocess.TimeoutExpired:
        return [], f"no end after {timeout:.0f} s"
    if done.returncode:
        said = [
            line
            for line in done.stderr.splitlines()
            if re.match(r"^(\[rank\d+\]: )?\w*(Error|Exception)\b", line)
        ]
        return losses(done.stdout), (said or done.stderr.splitlines() or ["no output"])[-1]
    return losses(done.stdout), ""


def main() -> int:
    """Run the cases; the exit code says whether every mark is met."""
    parser = arguments(__doc__)
    parser.add_argument("--megatron-lm-path", type=Path, required=True, metavar="DIR", help="a checkout")
    parser.add_argument("--curves", type=Path, required=True, metavar="FILE", help="recorded curves (JSON)")
    parser.add_argument("--only", metavar="TEXT", help="cases whose name contains TEXT")
    parser.add_argument("--timeout", type=float, default=300, help="seconds allowed for one case")
    options = parser.parse_args()
    script = (options.megatron_lm_path / "pretrain_gpt.py").resolve()
    for needed in (script, options.curves):
        if not needed.is_file():
            parser.error(f"{needed} does not exist")
    return measure(options, script, json.loads(options.curves.read_text()))


def measure(options: argparse.Namespace, script: Path, curves: dict[str, Any]) -> int:
    """Run the cases that ``options`` choose and report them."""
    report = Report("stock_scripts", "Stock pretrain_gpt.py against plain torch CPU", options)
    for case in QUICK if options.quick else FULL:
        if options.only and options.only not in case.name:
            continue
        expected = curves["curves"][case.curve]["loss"]
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            measured, error = run(case, script, curves, Path(scratch), options.timeout)
        worst = deviation(measured, expected)
        limit = LIMIT["bf16" if "bf16" in case.curve else "fp32"]
        report.row(
            case=case.curve,
            spec=case.spec,
            launch=case.launch,
            extra=case.extra or None,
            iterations=len(measured),
            deviation=worst if worst != float("inf") else None,
            limit=limit,
            seconds=round(time.perf_counter() - start, 1),
            error=error or None,
        )
        found = error if error else f"{worst:.1e}"
        report.mark(f"{case.name}: losses within {limit:g}", worst <= limit and not error, found)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
