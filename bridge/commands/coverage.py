"""``mindspeed-ms coverage``: what ran where in a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from mindspeed_ms.commands import coverage_report as report
from mindspeed_ms.commands.errors import CommandError
from mindspeed_ms.config import settings

HELP = "report of a run: calls and time per operator and route"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``coverage``."""
    parser.add_argument(
        "file", nargs="?", help=f"what `run --coverage FILE` wrote; default ${settings.COVERAGE.name}"
    )
    parser.add_argument("--all", action="store_true", help="every row, not only the 30 that took longest")
    parser.add_argument("--why", action="store_true", help="say what spoke against a better route")


def execute(options: argparse.Namespace) -> int:
    """Print the report. Raises CommandError where there is none."""
    name = options.file or settings.COVERAGE.value
    if not name:
        raise CommandError(f"name the file that `run --coverage FILE` wrote, or set {settings.COVERAGE.name}")
    try:
        found = report.read(Path(name))
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from error
    print(report.render(found, top=None if options.all else 30, why=options.why))
    return 0
