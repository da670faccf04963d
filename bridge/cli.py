"""The command ``mindspeed-ms``: run a script, examine the installation, report on a run, list the patches."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mindspeed_ms import __version__, run
from mindspeed_ms.commands import env
from mindspeed_ms.config import settings


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without a usage block around it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} ({self.prog} --help shows more)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mindspeed-ms", description="Stock Megatron-LM scripts on MindSpore.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    add = commands.add_parser("run", help="run a script with the bridge on, none of its lines edited")
    run.add_arguments(add)
    add.set_defaults(do=run.execute)

    add = commands.add_parser("doctor", help="examine the installation and say what to do")
    add.add_argument(
        "--calibrate",
        action="store_true",
        help="first measure for some minutes which kernels are fastest here; later runs use the result",
    )
    add.set_defaults(do=_doctor)

    add = commands.add_parser("coverage", help="report of a run: calls and time per operator and route")
    add.add_argument(
        "file", nargs="?", help="what `run --coverage FILE` wrote; default $MINDSPEED_MS_COVERAGE"
    )
    add.add_argument("--all", action="store_true", help="every row, not only the 30 that took longest")
    add.set_defaults(do=_coverage)

    add = commands.add_parser("env", help="each variable of the environment that counts: value, origin, why")
    env.add_arguments(add)
    add.set_defaults(do=env.execute)

    add = commands.add_parser("patches", help="each patch of torch and Megatron: target, state, why")
    add.add_argument("--megatron-lm-path", metavar="DIR", help="a Megatron-LM checkout to patch instead")
    add.set_defaults(do=_patches)
    return parser


def _doctor(options: argparse.Namespace) -> int:
    from mindspeed_ms import doctor

    return doctor.main(options.calibrate)


def _coverage(options: argparse.Namespace) -> int:
    from mindspeed_ms import coverage_report

    name = options.file or settings.COVERAGE.value
    if not name:
        return _fail(
            "coverage", f"name the file that `run --coverage FILE` wrote, or set {settings.COVERAGE.name}"
        )
    try:
        report = coverage_report.read(Path(name))
    except (OSError, ValueError) as error:
        return _fail("coverage", str(error))
    print(coverage_report.render(report, top=len(report["rows"]) if options.all else 30))
    return 0


def _patches(options: argparse.Namespace) -> int:
    """Every patch of torch and Megatron and what became of it; 1 if one did not fit."""
    checkout = options.megatron_lm_path
    if checkout:
        if not Path(checkout, "megatron/core").is_dir():
            return _fail("patches", f"{checkout} is no Megatron-LM checkout: it has no folder megatron/core")
        sys.path.insert(0, checkout)
    try:
        import mindspeed_ms.patch  # noqa: F401
    except ImportError as error:
        return _fail("patches", str(error))
    from mindspeed_ms.patches import listing

    return listing.show()


def _fail(command: str, sentence: str) -> int:
    print(f"mindspeed-ms {command}: {sentence}", file=sys.stderr)
    return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``mindspeed-ms``; returns the exit status."""
    options = _parser().parse_args(argv)
    if options.command == "run":  # a script's errors are its own
        return options.do(options)
    try:
        status = options.do(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at exit
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
