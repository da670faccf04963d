"""torch's OpInfo database on device npu: ``python -m tests.conformance.opinfo``.

Every operator of the database, every sample, forward, backward, in-place and out=, against stock CPU. Exits
non-zero for a failure that is not in :mod:`.exceptions`, for an exception that no longer fails (whole runs),
and when the exceptions are more than 1 % of the sample checks.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from mindspeed_ms.config import settings
from mindspeed_ms.routes.choice import ROUTES

from . import exceptions, pool
from .catalogue import operators, variants_of

DTYPES = ("float32", "bfloat16", "int64", "bool")
ASCEND_DTYPES = ("float32", "bfloat16", "float16", "int64", "int32", "bool")
"""What a target is checked for; torch's CPU kernels, which are most of the CPU target's, differ little."""


def dtypes_of_target() -> tuple[str, ...]:
    return ASCEND_DTYPES if settings.TARGET.value == "Ascend" else DTYPES


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.opinfo", description=__doc__)
    parser.add_argument("--ops", default=".*", metavar="REGEX", help="operators by whole name, default all")
    dtypes = dtypes_of_target()
    parser.add_argument("--dtypes", nargs="+", default=dtypes, help=f"default {' '.join(dtypes)}")
    parser.add_argument("--route", choices=ROUTES, default="auto")
    parser.add_argument("--samples", type=int, default=0, help="at most so many each; 0 (default): all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one variant of one operator")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


def tasks(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One task for each operator and dtype that the options select and stock CPU supports."""
    selected = []
    for name, op in operators().items():
        if not re.fullmatch(options.ops, name):
            continue
        for dtype in options.dtypes:
            if variants := variants_of(op, getattr(torch, dtype)):
                common = {"samples": options.samples, "route": options.route}
                selected.append({"op": name, "dtype": dtype, "variants": variants, **common})
    return selected


def judge(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Splits the failures into excepted and unexpected ones; counts sample checks."""
    excepted: Counter[int] = Counter()
    unexpected: list[tuple[str, str, str, str, int]] = []
    for row in rows:
        key = (row["op"], row["dtype"], row["variant"])
        for error, count in row["errors"].items():
            known = exceptions.excuse(*key, error)
            if known:
                excepted[exceptions.EXCEPTIONS.index(known)] += count
            else:
                unexpected.append((*key, error, count))
    checks = sum(row["passed"] + row["failed"] for row in rows)
    return {
        "sample_checks": checks,
        "passed": sum(row["passed"] for row in rows),
        "rounding": sum(row.get("rounding", 0) for row in rows),
        "random": sum(row.get("random", 0) for row in rows),
        "excepted": sum(excepted.values()),
        "unexpected": unexpected,
        "unused_exceptions": [
            e.op for i, e in enumerate(exceptions.EXCEPTIONS) if e.here() and i not in excepted
        ],
        "operators": len({row["op"] for row in rows}),
        "skipped_on_cpu": sum(row["skipped"] for row in rows),
    }


def route_names(row: dict[str, Any]) -> str:
    return "+".join(sorted(row["routes"])) or "view"  # views and metadata are counted on no route


def show(row: dict[str, Any]) -> None:
    counts = f"{row['passed']}/{row['passed'] + row['failed']}"
    names = f"{row['op']:44s} {row['dtype']:9s} {row['variant']:9s}"
    print(f"{names} {route_names(row):15s} {counts:>9s} {row['result']}", flush=True)
    for error, count in list(row["errors"].items())[:3]:
        print(f"    {count} x {error[:300]}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    started = time.monotonic()
    selected = tasks(options)
    rows = []
    for row in pool.run(selected, options.workers, options.timeout):
        rows.append(row)
        show(row)
    summary = judge(rows)
    summary["seconds"] = round(time.monotonic() - started, 1)
    whole = options.ops == ".*" and not options.samples and set(options.dtypes) >= set(dtypes_of_target())
    problems = [f"{op} {dtype} {variant} x{n}: {e}" for op, dtype, variant, e, n in summary["unexpected"]]
    if whole:
        problems += [f"exception for {op} is not needed any more" for op in summary["unused_exceptions"]]
    if summary["excepted"] > exceptions.LIMIT * summary["sample_checks"]:
        problems.append(f"more than {exceptions.LIMIT:.0%} of the sample checks are exceptions")
    if not selected:
        problems.append("no operator of the database was selected")
    print("\n".join(problems))
    print(
        "{operators} operators, {sample_checks} sample checks: {passed} pass ({rounding} of them with "
        "another rounding than CPU's, as near to float64, {random} with other random numbers), "
        "{excepted} excepted; "
        "{skipped_on_cpu} samples that stock CPU refuses; {seconds} s".format(**summary)
    )
    print(f"route {options.route}: {len(problems)} problems")
    if options.json:
        versions = {n: importlib.metadata.version(n) for n in ("torch", "mindspore", "mindspeed-ms")}
        report = {"rows": rows, "summary": summary, "problems": problems, "versions": versions}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
