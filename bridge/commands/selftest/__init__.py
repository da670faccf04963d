"""``mindspeed-ms selftest``: everything that a card must do, in ten minutes, and one file to send back."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from mindspeed_ms import __version__
from mindspeed_ms.commands.errors import CommandError
from mindspeed_ms.commands.selftest import compare, groups
from mindspeed_ms.config import settings

HELP = "try everything on the cards of this machine, in ten minutes; one file to send back"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``selftest``."""
    parser.add_argument("--output", type=Path, metavar="FILE", default=Path("mindspeed-ms-selftest.json"))
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="FILE",
        help="list what differs from that report, which another machine made",
    )
    names = [group.name for group in groups.GROUPS]
    parser.add_argument(
        "--groups", nargs="+", choices=names, default=names, metavar="GROUP", help="only these"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose names contain it")


def execute(options: argparse.Namespace) -> int:
    """Run the groups and write the report; 1 if a row fails or, with --compare, differs.

    Target is Ascend unless MINDSPEED_MS_TARGET says CPU: then the same rows run there, in as many processes
    as they want cards. Raises CommandError where there is no card.
    """
    theirs = _read(options.compare) if options.compare else None
    target, cards = _cards()
    started = time.monotonic()
    rows: list[dict[str, Any]] = []
    for group in groups.GROUPS:
        if group.name not in options.groups:
            continue
        print(f"{group.name}: {group.what}", flush=True)
        if group.cards > cards:
            why = f"needs {group.cards} cards, {cards} can be seen"
            found = iter([groups.row(group, "all", "skip", why)])
        else:
            found = groups.run(group, options.only, {**os.environ, settings.TARGET.name: target})
        for row in found:
            rows.append({**row, "target": target})
            if row["status"] != "pass":
                print(f"  {row['status'].upper()} {row['name']}: {row['detail']}", flush=True)
    report = {
        "version": __version__,
        "target": target,
        "cards": cards,
        "seconds": round(time.monotonic() - started, 1),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(ENVIRONMENT)},
        "rows": rows,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    count = {status: sum(row["status"] == status for row in rows) for status in ("pass", "fail", "skip")}
    print(
        f"{count['pass']} rows pass, {count['fail']} fail, {count['skip']} skipped on target {target} "
        f"in {report['seconds']} s: send back {options.output}"
    )
    different: list[str] = []
    if theirs is not None:
        chosen = [
            row for row in theirs["rows"] if row["group"] in options.groups and options.only in row["name"]
        ]
        different = list(compare.differences({**theirs, "rows": chosen}, report))
        print(
            f"{len(different)} differences from {options.compare} (target {theirs['target']})",
            *different,
            sep="\n",
        )
    return 1 if count["fail"] or different else 0


ENVIRONMENT = ("ASCEND_", "HCCL_", "MS_", "MINDSPEED_MS_", "OMP_")
"""Variables that change what happens: they go into the report."""


def _cards() -> tuple[str, int]:
    """(target, number of cards). Raises CommandError where Ascend is meant and not there."""
    if settings.TARGET.origin(os.environ) == "environment" and settings.TARGET.value == "CPU":
        return "CPU", max(group.cards for group in groups.GROUPS)
    from mindspeed_ms.device import cann

    try:
        cann.require()
    except RuntimeError as problem:
        raise CommandError(f"{problem}; {settings.TARGET.name}=CPU tries the CPU target instead") from None
    return "Ascend", cann.device_count()


def _read(file: Path) -> dict[str, Any]:
    try:
        report = json.loads(file.read_text())
        report["target"], [(row["group"], row["name"], row["status"]) for row in report["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{file} is not a report of mindspeed-ms selftest ({error!r})") from error
    return report
