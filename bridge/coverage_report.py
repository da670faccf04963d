"""What ran where: the report of a run, from the file that the run wrote.

The file holds ``{"rows": [{"op", "dtype", "route", "calls", "seconds"}, ...], "wall_seconds": float,
"versions": {name: version}}``; ``mindspeed_ms.ops.coverage`` counts and writes.
"""

from __future__ import annotations

import atexit
import json
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from mindspeed_ms.config import settings

OURS = ("mindspore", "csrc")


def write_at_exit() -> None:
    """If MINDSPEED_MS_COVERAGE names a file, write the counters there when the process ends.

    Rank 0 writes the file itself, rank N writes ``<stem>.rank<N><suffix>`` beside it. Processes that a rank
    starts (DataLoader workers, checkpoint writers) inherit the variable but do not write; torchrun, which has
    the bridge on with MINDSPEED_MS_AUTOLOAD and counts nothing, leaves rank 0's report alone.
    """
    path = settings.COVERAGE.value
    if path is None:
        return
    claim = os.environ.get("RANK", "none")
    if settings.COVERAGE_CLAIMED.value == claim:
        return
    settings.COVERAGE_CLAIMED.hand_on(claim)
    rank = 0 if claim == "none" else int(claim)
    if rank:
        path = path.with_name(f"{path.stem}.rank{rank}{path.suffix}")

    from mindspeed_ms.ops import coverage  # now, not at exit: its clock starts when it is imported

    started = time.time()

    def write() -> None:
        written_since = path.exists() and path.stat().st_mtime >= started
        if coverage.snapshot() or not written_since:
            coverage.write(path)

    atexit.register(write)


def read(path: Path) -> dict[str, Any]:
    """The report in ``path``. Raises FileNotFoundError or ValueError with one sentence on what is wrong."""
    try:
        report = json.loads(path.read_text())
        for row in report["rows"]:
            row["calls"], row["seconds"] = int(row["calls"]), float(row["seconds"])
            row["op"], row["dtype"], row["route"]
        return report
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} does not exist: make it with `mindspeed-ms run --coverage {path} SCRIPT ...`"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a coverage report of mindspeed_ms ({error!r})") from None


def share(rows: list[dict[str, Any]]) -> float:
    """Part (0 to 1) of the operator time that went through MindSpore or our own kernels; 0 if there is
    none.
    """
    total = sum(row["seconds"] for row in rows)
    return sum(row["seconds"] for row in rows if row["route"] in OURS) / total if total else 0.0


def render(report: dict[str, Any], top: int = 30) -> str:
    """The report as text: operators by time, totals by route, the share on MindSpore + csrc, what is left."""
    rows = sorted(report["rows"], key=lambda row: -row["seconds"])
    if not rows:
        return "no operator ran on device npu in that process"
    total = sum(row["seconds"] for row in rows) or 1.0
    lines = [f"{'operator':<44} {'dtype':<10} {'route':<10} {'calls':>9} {'seconds':>9} {'share':>7}"]
    lines += [
        f"{row['op']:<44} {row['dtype']:<10} {row['route']:<10} {row['calls']:>9} {row['seconds']:>9.3f}"
        f" {row['seconds'] / total:>7.1%}"
        for row in rows[:top]
    ]
    if len(rows) > top:
        rest = sum(row["seconds"] for row in rows[top:])
        lines.append(f"... {len(rows) - top} more rows, {rest:.3f} s (--all shows them)")

    routes: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for row in rows:
        routes[row["route"]][0] += row["calls"]
        routes[row["route"]][1] += row["seconds"]
    lines.append("")
    for route, (calls, seconds) in sorted(routes.items(), key=lambda item: -item[1][1]):
        lines.append(f"{'route ' + route:<66} {calls:>9} {seconds:>9.3f} {seconds / total:>7.1%}")

    left: dict[str, float] = defaultdict(float)
    for row in rows:
        if row["route"] not in OURS:
            left[f"{row['op']} ({row['dtype']})"] += row["seconds"]
    lines.append("")
    lines.append(f"operator time on MindSpore + csrc: {share(rows):.1%}")
    if left:
        named = [
            f"{name} {seconds / total:.1%}" for name, seconds in sorted(left.items(), key=lambda i: -i[1])
        ]
        more = f" and {len(named) - 10} more" if len(named) > 10 else ""
        lines.append(f"left on other routes: {', '.join(named[:10])}{more}")
    wall = report.get("wall_seconds")
    if wall:
        lines.append(
            f"wall time {wall:.1f} s, of it in operators {sum(r['seconds'] for r in rows) / wall:.1%}"
        )
    if report.get("versions"):
        lines.append("with " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    return "\n".join(lines)
