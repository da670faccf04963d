"""``mindspeed-ms doctor``: is everything here that training needs, and if not, what to do."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mindspeed_ms.commands import calibrate
from mindspeed_ms.config import settings, versions

HELP = "examine the installation and say what to do"


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``advice`` is empty when all is well."""

    what: str
    value: str
    advice: str = ""


def _versions() -> Iterator[Finding]:
    for check in versions.examine():
        yield Finding(
            check.name, f"{check.found or 'not installed'} (accepted: {check.accepted})", check.problem
        )


def _patch_targets() -> Iterator[Finding]:
    import mindspeed_ms.patch  # noqa: F401
    from mindspeed_ms.patches import listing, registry, verify

    tree = versions.megatron_tree()
    if tree is None:
        return
    yield Finding("Megatron", str(tree))
    patches = [record.patch for record in registry.load().records()]
    wrong = [*verify.verify(tree, patches), *(f"{r.patch.target}: {r.detail}" for r in listing.misfits())]
    advice = "; ".join(map(str, wrong))
    yield Finding("patch targets", f"{len(patches) - len(wrong)} of {len(patches)} fit", advice)


def _extensions() -> Iterator[Finding]:
    import torch  # noqa: F401  (the runtime extension needs its libraries loaded)

    for name in ("_runtime", "_native"):
        try:
            module = importlib.import_module(f"mindspeed_ms.{name}")
        except ImportError as error:
            advice = (
                f"build it again: pip install --force-reinstall --no-deps . in the source folder ({error})"
            )
            yield Finding(f"extension {name}", "cannot be loaded", advice)
        else:
            yield Finding(f"extension {name}", os.path.basename(module.__file__ or ""))


def _threads() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0))
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads = torch.get_num_threads()
    policy = os.environ.get("OMP_WAIT_POLICY", "not set")
    value = f"{threads} of torch on {cores} cores, {ranks} rank(s), OMP_WAIT_POLICY {policy}"
    best = max(1, cores // ranks)
    advice = f"set OMP_NUM_THREADS={best}: there are fewer cores than threads" if threads > best else ""
    yield Finding("threads", value, advice)


GROUPS_OF_A_RANK = 8
"""Groups that a rank of a parallel run exchanges tensors in, each over memory of its own."""


def _exchange() -> Iterator[Finding]:
    from mindspeed_ms.comm import limits

    what, ranks = "exchange of ranks", max(2, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    try:
        segment = limits.segment(ranks)
    except OSError as error:
        yield Finding(what, "none", f"this kernel gives no memory that ranks could share: {error}")
        return
    way = settings.SEGMENT.value
    left, whose = limits.memory_left()
    value = (
        f"{segment.nbytes / 2**20:.0f} MiB for a group of {ranks} ranks, found by way of {way}; "
        f"{left / 2**20:.0f} MiB left to the {whose}"
    )
    advice = ""
    if left < GROUPS_OF_A_RANK * segment.nbytes:
        advice = f"give the {whose} more memory, or start fewer ranks: tensors of ranks pass through it"
    elif way == "proc" and not limits.can_be_opened(segment.path):
        advice = (
            f"set {settings.SEGMENT.name}=socket: this system hides the open files of other processes, "
            "where ranks look for the memory that they share"
        )
    yield Finding(what, value, advice)


def _device() -> Iterator[Finding]:
    import mindspeed_ms.patch  # noqa: F401
    import torch
    from mindspeed_ms import routes
    from mindspeed_ms.routes import coverage

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(96, 96, generator=generator) for _ in range(2))
    coverage.reset()
    with routes.route("strict"):  # auto may find torch's kernel faster for a matrix this small
        product = (a.to("npu") @ b.to("npu")).cpu()
    taken = {row["route"] for row in coverage.snapshot() if row["op"].startswith("aten::mm")}
    error = (product.double() - a.double() @ b.double()).abs().max().item()

    import mindspore

    yield Finding("target", mindspore.get_context("device_target"))
    value = f"error {error:.1e} against float64, route {', '.join(sorted(taken)) or 'not counted'}"
    advice = ""
    if not error < 1e-4:  # 96 products of order one, rounded to 2**-24 each, are good to a few 1e-6
        advice = "the result is wrong: reinstall mindspore"
    elif taken != {"mindspore"}:
        advice = "it did not run on MindSpore: install mindspeed_ms and mindspore again"
    yield Finding("96x96 matmul on npu", value, advice)


def _routes() -> Iterator[Finding]:
    from mindspeed_ms.ops import auto

    file = auto.path()
    value = "as shipped" if file == auto.DEFAULT else str(file)
    old = file == auto.DEFAULT and auto.measured().exists()
    advice = (
        f"{auto.measured()} was measured on another machine or with other versions: "
        "run mindspeed-ms calibrate"
        if old
        else ""
    )
    yield Finding("routes", value, advice)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    *(_versions, _patch_targets, _extensions, _threads, _exchange, _routes, _device),
)


def examine() -> Iterator[Finding]:
    """Every finding in turn. A check that cannot run is a finding itself, with the error as its advice."""
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:
            # Whatever a broken installation raises is the very thing to report, and the next check must run.
            name = check.__name__.strip("_").replace("_", " ")
            yield Finding(name, "failed", f"{type(error).__name__}: {error}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``doctor``."""
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="first measure for some minutes which kernels are fastest here; later runs use the result",
    )


def execute(options: argparse.Namespace) -> int:
    """Print the report, with --calibrate after measuring this machine's routes; 1 if something is off."""
    if options.calibrate:
        calibrate.execute(argparse.Namespace(output=None, only=None, dtypes=None))
    off = 0
    for finding in examine():
        off += bool(finding.advice)
        print(f"{'OFF' if finding.advice else 'ok':<4}{finding.what:<22}{finding.value}", flush=True)
        if finding.advice:
            print(f"{'':<26}-> {finding.advice}", flush=True)
    print(f"{off} thing(s) to mend" if off else "all is well")
    return 1 if off else 0
