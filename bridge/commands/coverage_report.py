"""What ran where: the report of a run, from the file that the run wrote (:mod:`.coverage`).

The file holds ``{"rows": [{"op", "dtype", "route", "why", "calls", "seconds"}, ...], "wall_seconds": float,
"versions": {name: version}}``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

OURS = ("mindspore", "csrc")
ORDER = (*OURS, "composite", "host")


def read(path: Path) -> dict[str, Any]:
    """The report in ``path``. Raises FileNotFoundError or ValueError with one sentence on what is wrong."""
    try:
        report = json.loads(path.read_text())
        for row in report["rows"]:
            row["calls"], row["seconds"] = int(row["calls"]), float(row["seconds"])
            row["op"], row["dtype"], row["route"], row["why"]
        return report
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} does not exist: make it with `mindspeed-ms run --coverage {path} SCRIPT ...`"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a coverage report of mindspeed_ms ({error!r})") from None


def _sums(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, Row]:
    """Calls and seconds by `key`, most time first, as rows like the first of each."""
    found: dict[Any, Row] = {}
    for row in rows:
        total = found.setdefault(key(row), {**row, "calls": 0, "seconds": 0.0})
        total["calls"] += row["calls"]
        total["seconds"] += row["seconds"]
    return dict(sorted(found.items(), key=lambda item: (-item[1]["seconds"], -item[1]["calls"])))


def shares(rows: Iterable[Row]) -> dict[str, float]:
    """Part (0 to 1) of the operator time by route, of every route; all 0 if there is none.

    A composite's time is that of the operators in it: its own share is what its kernels spend outside them.
    """
    by_route = {route: row["seconds"] for route, row in _sums(rows, lambda row: row["route"]).items()}
    total = sum(by_route.values()) or 1.0
    return {route: by_route.get(route, 0.0) / total for route in ORDER}


def share(rows: Iterable[Row]) -> float:
    """Part (0 to 1) of the operator time that went through MindSpore or our own kernels."""
    by_route = shares(rows)
    return sum(by_route[route] for route in OURS)


def _bus(counted: dict[str, Row]) -> list[str]:
    """What crossed between host and device by cause, most bytes first; nothing where memory is the host's."""
    if not counted:
        return []
    total = {name: sum(row[name] for row in counted.values()) for name in next(iter(counted.values()))}
    causes = sorted(counted.items(), key=lambda item: -item[1]["to_device_bytes"] - item[1]["to_host_bytes"])
    lines = ["", f"{'host and device':<44} {'to device':>21} {'to host':>21} {'waits':>9}"]
    for cause, row in (*causes, ("total", total)):
        there = f"{row['to_device_calls']} x, {row['to_device_bytes']} B"
        back = f"{row['to_host_calls']} x, {row['to_host_bytes']} B"
        lines.append(f"{cause:<44} {there:>21} {back:>21} {row['synchronizations']:>9}")
    return [*lines, ""]


def render(report: dict[str, Any], top: int | None = 30, why: bool = False) -> str:
    """The report as text: operators by time, each route's calls and share, what is left.

    Args:
        top: so many rows, None for all.
        why: with the reason of each row.
    """
    rows = report["rows"]
    if not rows:
        return "no operator ran on device npu in that process"
    total = sum(row["seconds"] for row in rows) or 1.0

    def part(row: Row) -> str:
        return f"{row['calls']:>9} {row['seconds']:>9.3f} {row['seconds'] / total:>7.1%}"

    keys = ("op", "dtype", "route", "why") if why else ("op", "dtype", "route")
    shown = list(_sums(rows, lambda row: tuple(row[key] for key in keys)).values())
    lines = [f"{'operator':<44} {'dtype':<10} {'route':<10} {'calls':>9} {'seconds':>9} {'share':>7}"]
    for row in shown[:top]:
        reason = f"  {row['why'] or 'first choice'}" if why else ""
        lines.append(f"{row['op']:<44} {row['dtype']:<10} {row['route']:<10} {part(row)}{reason}")
    if top is not None and len(shown) > top:
        rest = sum(row["seconds"] for row in shown[top:])
        lines.append(f"... {len(shown) - top} more rows, {rest:.3f} s (--all shows them)")
    lines.append("")
    by_route = _sums(rows, lambda row: row["route"])
    lines += [f"{'route ' + route:<66} {part(by_route[route])}" for route in ORDER if route in by_route]
    lines.append("")
    parts = shares(rows)
    lines.append(
        f"operator time on MindSpore + csrc: {share(rows):.1%} "
        f"({', '.join(f'{route} {parts[route]:.1%}' for route in ORDER)})"
    )
    left: dict[str, float] = defaultdict(float)
    for row in rows:
        if row["route"] not in OURS and row["seconds"]:
            left[f"{row['op']} ({row['dtype']})"] += row["seconds"]
    if left:
        named = [
            f"{name} {seconds / total:.1%}" for name, seconds in sorted(left.items(), key=lambda i: -i[1])
        ]
        more = f" and {len(named) - 10} more" if len(named) > 10 else ""
        lines.append(f"left on other routes: {', '.join(named[:10])}{more}")
    lines += _bus(report.get("bus") or {})
    wall = report.get("wall_seconds")
    if wall:
        lines.append(
            f"wall time {wall:.1f} s, of it in operators {sum(r['seconds'] for r in rows) / wall:.1%}"
        )
    if report.get("versions"):
        lines.append("with " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    return "\n".join(lines)
