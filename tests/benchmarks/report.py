"""What the "Must show" scripts have in common: paired timing, the table, the JSON file and the exit code.

Use::

    report = Report("dispatch", "npu op over the same MindSpore op called natively", options)
    ratio = paired(npu_add, native_add).ratio
    report.row(op="add", ratio=ratio)
    report.mark("add within 1.3x of native", ratio <= 1.3, f"{ratio:.2f}")
    sys.exit(report.finish())
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**40), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""Environment in which glibc's malloc keeps freed memory, as jemalloc and tcmalloc do. It is read at the
start of a process, and decides whether large tensors of plain torch cost fresh pages."""
MATRIX_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
"""Flags of /proc/cpuinfo that decide how fast bfloat16 products are."""
VERSIONS_OF = ("mindspeed-ms", "torch", "mindspore", "megatron-core", "numpy")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Parser with the two flags that every benchmark takes; add the script's own to it."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="at most 3 minutes on 2 cores, sizes still meaningful"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write rows, summary, versions and machine to FILE"
    )
    return parser


def versions() -> dict[str, str]:
    """Installed versions of what decides a measurement: distribution name -> version, or "not installed"."""
    found = {"python": platform.python_version()}
    for name in VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """CPU model, its bfloat16 instructions, cores that this process may use, memory in GB, load.

    None where /proc hides it.
    """
    facts: dict[str, Any] = {"cpu": platform.processor() or None, "cores": len(os.sched_getaffinity(0))}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
        of_first = {name.strip(): value.strip() for name, _, value in reversed(fields)}
        facts["cpu"] = of_first.get("model name", facts["cpu"])
        flags = of_first.get("flags", "").split()
        facts["bf16_instructions"] = [flag for flag in MATRIX_INSTRUCTIONS if flag in flags]
    facts["memory_gb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    facts["load_1min"] = round(os.getloadavg()[0], 2)
    facts["omp_num_threads"] = os.environ.get("OMP_NUM_THREADS")
    return facts


@dataclass(frozen=True)
class Paired:
    """Two functions timed in turns: median seconds of each, median of the ratios of neighbouring turns."""

    first: float
    second: float
    ratio: float
    spread: tuple[float, float]
    """Smallest and largest ratio of the middle half of the pairs."""


def paired(
    first: Callable[[], Any],
    second: Callable[[], Any],
    repeats: int = 21,
    inner: int | tuple[int, int] = 1,
    warmup: int = 3,
    rest: float = 0.0,
) -> Paired:
    """Times `first` and `second` alternately, so that a change in the machine's load meets both.

    `inner` calls make one timed turn (use it when a call takes microseconds), or so many of either side;
    `repeats` turns of each are taken after `warmup` untimed ones. The order within a pair alternates. Times
    are seconds per call.
    `rest` > 0: every turn starts with so many seconds of sleep and an untimed call, where one side's worker
    threads still spin when the other's turn comes (OpenMP's wait some milliseconds for the next region).
    """
    calls = (inner, inner) if isinstance(inner, int) else inner
    if repeats < 3 or min(calls) < 1:
        raise ValueError(f"paired needs repeats >= 3 and inner >= 1, got {repeats} and {inner}")

    def turn(function: Callable[[], Any], count: int) -> float:
        if rest:
            time.sleep(rest)
            function()
        start = time.perf_counter()
        for _ in range(count):
            function()
        return (time.perf_counter() - start) / count

    sides = ((first, calls[0]), (second, calls[1]))
    for _ in range(warmup):
        for side in sides:
            turn(*side)
    pairs = []
    for index in range(repeats):
        if index % 2:
            b, a = turn(*sides[1]), turn(*sides[0])
        else:
            a, b = turn(*sides[0]), turn(*sides[1])
        pairs.append((a, b))
    ratios = sorted(a / b for a, b in pairs)
    return Paired(
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(ratios),
        (ratios[repeats // 4], ratios[-1 - repeats // 4]),
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{len(value)} entries" if isinstance(value, list) else str(value)


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> str:
    """`rows` as aligned text, numbers to the right. Default columns: those of all rows, in order met."""
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max([len(column), *(len(line[i]) for line in cells)]) for i, column in enumerate(columns)]
    numeric = [
        all(isinstance(row.get(column), (int, float, type(None))) for row in rows) for column in columns
    ]

    def line(texts: Sequence[str]) -> str:
        return "  ".join(
            t.rjust(w) if right else t.ljust(w) for t, w, right in zip(texts, widths, numeric, strict=True)
        ).rstrip()

    return "\n".join([line(columns), line(["-" * w for w in widths]), *map(line, cells)])


class Report:
    """Rows and marks of one benchmark; `finish` prints them, writes the JSON file, gives the exit code."""

    def __init__(self, name: str, title: str, options: argparse.Namespace) -> None:
        """`options` comes from `arguments(...)`: `quick` and `json` are read."""
        self.name, self.title, self.options = name, title, options
        self.rows: list[dict[str, Any]] = []
        self.marks: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self._machine = machine()
        self._start = time.perf_counter()

    def row(self, **values: Any) -> None:
        """Adds one line of the table; values must be JSON-able."""
        self.rows.append(values)

    def mark(self, what: str, met: bool, measured: str) -> None:
        """Records one of the benchmark's own marks: `what` is demanded, `measured` is what was found."""
        self.marks.append({"mark": what, "measured": measured, "met": bool(met)})

    def finish(self) -> int:
        """Prints table and marks, writes `--json FILE`; returns 0 when every mark is met, else 1.

        A report without rows counts as failed: nothing was measured.
        """
        seconds = time.perf_counter() - self._start
        print(f"\n{self.title}")
        print(table(self.rows))
        for key, value in self.summary.items():
            print(f"{key}: {_cell(value)}")
        for mark in self.marks:
            print(f"{'met' if mark['met'] else 'MISSED':>6}: {mark['mark']} (measured: {mark['measured']})")
        met = bool(self.rows) and all(mark["met"] for mark in self.marks)
        if self.options.json:
            self.options.json.write_text(
                json.dumps(
                    {
                        "name": self.name,
                        "title": self.title,
                        "quick": self.options.quick,
                        "rows": self.rows,
                        "summary": self.summary,
                        "marks": self.marks,
                        "met": met,
                        "seconds": round(seconds, 1),
                        "versions": versions(),
                        "machine": self._machine,
                    },
                    indent=1,
                )
                + "\n"
            )
        return 0 if met else 1
