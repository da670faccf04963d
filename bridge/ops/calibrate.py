"""Measures every lowering on its routes and writes the table of route auto.

    mindspeed-ms calibrate                                         for later runs on this machine
    mindspeed-ms calibrate --output FILE [--only OPERATOR ...]     remakes another table, the shipped one

For each operator and dtype, calls of four sizes are timed on every route in turn; the fastest is taken, by
the weights of PREFERENCE, and the size where it changes. A route whose result differs from float64 by more
than torch's own tolerance for the dtype is left out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mindspeed_ms.ops import auto
from mindspeed_ms.ops.registry import Inputs, inputs, table

SIDES = (16, 64, 256, 1024)
"""Calls are measured on square matrices of these sides."""

PREFERENCE = {"csrc": 1.0, "mindspore": 1.1, "host": 1.2}
"""What times count by. Repeated runs differ by a tenth; then csrc is better, as its threads are those of the
fused kernels around it and its results lie in memory that is used again. torch's own kernels come last."""

MEASURED = (torch.float32, torch.bfloat16, torch.float16)
"""dtypes that are measured; others run on the host."""

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2, torch.float64: 1e-7}
"""Largest error, relative to the largest value of the result."""


def _error(found: Any, wanted: Any) -> float:
    """Largest difference relative to the largest value, over all results."""
    pairs = [(found, wanted)] if isinstance(found, torch.Tensor) else zip(found, wanted, strict=True)
    worst = 0.0
    for ours, exact in pairs:
        ours, exact = ours.cpu().double(), exact.double()
        worst = max(worst, ((ours - exact).abs().max() / exact.abs().max().clamp_min(1e-3)).item())
    return worst


REST_SECONDS = 0.01
"""Before a route's turn: the threads of the one before (OpenMP's, for some milliseconds) still hold cores."""


def _seconds(call: Callable[[Inputs], Any], given: Inputs, budget: float) -> float:
    """Shortest of the calls that fit into `budget` seconds, at least five: other processes only add time."""
    time.sleep(REST_SECONDS)
    call(given)  # wakes the route's own threads
    times: list[float] = []
    while len(times) < 5 or sum(times) < budget:
        start = time.perf_counter()
        call(given)
        times.append(time.perf_counter() - start)
    return min(times)


def measure(name: str, dtype: torch.dtype, rounds: int = 3) -> dict[str, list[float]]:
    """Seconds per call by route, one for each of SIDES; routes that are wrong are missing."""
    entry, call = table[name], table[name].sample
    found: dict[str, list[float]] = {route: [] for route in entry.routes(dtype)}
    for side in SIDES:
        given = inputs(side, dtype)
        exact = call(Inputs(*(t.double() if t.is_floating_point() else t for t in given)))
        lent = Inputs(*(t.to("npu") for t in given))
        times: dict[str, list[float]] = {route: [] for route in found}
        for _ in range(rounds):
            for route in list(found):
                entry.handle.set_auto(dtype, route, route, 0)
                # torch's own kernel stays whatever it gives: a sum may be too large for float16.
                if route != "host" and not times[route] and _error(call(lent), exact) > TOLERANCE[dtype]:
                    del found[route]
                    continue
                times[route].append(_seconds(call, lent, 0.01))
        for route in found:
            found[route].append(min(times[route]))
    entry.handle.set_auto(dtype, "host", "host", 0)
    return found


def choose(seconds: dict[str, list[float]]) -> tuple[str, str, int]:
    """(route below, route above, elements where it changes) from :func:`measure`."""

    def best(index: int) -> str:
        return min(seconds, key=lambda route: seconds[route][index] * PREFERENCE[route])

    winners = [best(index) for index in range(len(SIDES))]
    change = len(SIDES) - 1
    while change and winners[change - 1] == winners[-1]:
        change -= 1
    if change == 0:
        return winners[-1], winners[-1], 0
    return winners[0], winners[-1], SIDES[change] ** 2


def calibrate(names: Sequence[str], dtypes: Sequence[torch.dtype]) -> dict[str, dict[str, list[Any]]]:
    """Table of route auto, measured; operators for which the host is fastest everywhere are left out."""
    routes: dict[str, dict[str, list[Any]]] = {}
    for name in names:
        for dtype in dtypes:
            if len(table[name].routes(dtype)) < 2:
                continue
            seconds = measure(name, dtype)
            for route, kernel in table[name].kernels().items():
                if kernel.error(dtype):
                    seconds.pop(route, None)
            chosen = choose(seconds)
            label = str(dtype).removeprefix("torch.")
            cells = "  ".join(f"{r} {' '.join(f'{t * 1e6:.0f}' for t in ts)}" for r, ts in seconds.items())
            print(
                f"{name:<40} {label:<9} {chosen[0]:>9} {chosen[1]:>9} {chosen[2]:>8}   us: {cells}",
                flush=True,
            )
            if chosen[:2] != ("host", "host"):
                routes.setdefault(name, {})[label] = list(chosen)
    return routes


def write(routes: dict[str, dict[str, list[Any]]], file: Path) -> None:
    """Writes the table, an operator a line."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(routes[name])}" for name in sorted(routes))
    text = f'{{\n "machine": {json.dumps(auto.machine())},\n "routes": {{\n{lines}\n }}\n}}\n'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
