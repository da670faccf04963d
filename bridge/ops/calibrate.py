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
import torch.nn.functional as F
from mindspeed_ms.ops import auto
from mindspeed_ms.ops.fences import precise
from mindspeed_ms.ops.registry import table

SIDES = (16, 64, 256, 1024)
"""Calls are measured on square matrices of these sides."""

PREFERENCE = {"csrc": 1.0, "mindspore": 1.1, "host": 1.2}
"""What times count by. Repeated runs differ by a tenth; then csrc is better, as its threads are those of the
fused kernels around it and its results lie in memory that is used again. torch's own kernels come last."""

MEASURED = (torch.float32, torch.bfloat16, torch.float16)
"""dtypes that are measured; others run on the host."""

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2, torch.float64: 1e-7}
"""Largest error, relative to the largest value of the result."""

Call = Callable[..., Any]
aten = torch.ops.aten


CALLS: dict[str, Call] = {
    **{
        f"aten::{name}": (lambda x, y, p, i, name=name: getattr(torch, name)(p))
        for name in (
            *("abs", "cos", "erf", "exp", "log", "neg", "reciprocal", "relu", "rsqrt", "sigmoid", "sin"),
            *("sqrt", "tanh"),
        )
    },
    **{
        f"aten::{name}.Tensor": (lambda x, y, p, i, name=name: getattr(torch, name)(x, p))
        for name in ("add", "sub", "mul", "div", "eq", "ge", "gt", "le", "lt", "ne")
    },
    "aten::maximum": lambda x, y, p, i: torch.maximum(x, y),
    "aten::minimum": lambda x, y, p, i: torch.minimum(x, y),
    "aten::clamp": lambda x, y, p, i: x.clamp(-1, 1),
    "aten::where.self": lambda x, y, p, i: torch.where(i > 3, x, y),
    "aten::masked_fill.Scalar": lambda x, y, p, i: x.masked_fill(i > 3, 0.0),
    "aten::addcmul": lambda x, y, p, i: torch.addcmul(x, y, p, value=0.5),
    "aten::addcdiv": lambda x, y, p, i: torch.addcdiv(x, y, p, value=0.5),
    "aten::lerp.Scalar": lambda x, y, p, i: torch.lerp(x, y, 0.1),
    "aten::mm": lambda x, y, p, i: torch.mm(x, y),
    "aten::bmm": lambda x, y, p, i: torch.bmm(x.view(4, -1, x.shape[1]), y.view(4, x.shape[1], -1)),
    "aten::addmm": lambda x, y, p, i: torch.addmm(p, x, y),
    "aten::baddbmm": lambda x, y, p, i: torch.baddbmm(p[:1, :1], x.view(1, *x.shape), y.view(1, *y.shape)),
    "aten::sum.dim_IntList": lambda x, y, p, i: p.sum(-1),
    "aten::sum": lambda x, y, p, i: p.sum(),
    "aten::mean.dim": lambda x, y, p, i: p.mean(-1),
    "aten::mean": lambda x, y, p, i: p.mean(),
    "aten::amax": lambda x, y, p, i: x.amax(-1),
    "aten::linalg_vector_norm": lambda x, y, p, i: torch.linalg.vector_norm(x),
    "aten::cumsum": lambda x, y, p, i: p.cumsum(-1),
    "aten::_softmax": lambda x, y, p, i: x.softmax(-1),
    "aten::_softmax_backward_data": lambda x, y, p, i: aten._softmax_backward_data(x, p, -1, x.dtype),
    "aten::_log_softmax": lambda x, y, p, i: x.log_softmax(-1),
    "aten::_log_softmax_backward_data": lambda x, y, p, i: aten._log_softmax_backward_data(x, y, -1, x.dtype),
    "aten::silu": lambda x, y, p, i: F.silu(x),
    "aten::silu_backward": lambda x, y, p, i: aten.silu_backward(x, y),
    "aten::gelu": lambda x, y, p, i: F.gelu(x),
    "aten::gelu_backward": lambda x, y, p, i: aten.gelu_backward(x, y),
    "aten::sigmoid_backward": lambda x, y, p, i: aten.sigmoid_backward(x, p),
    "aten::tanh_backward": lambda x, y, p, i: aten.tanh_backward(x, p),
    "aten::native_layer_norm": lambda x, y, p, i: aten.native_layer_norm(x, x.shape[-1:], y[0], y[1], 1e-5),
    "aten::native_layer_norm_backward": lambda x, y, p, i: aten.native_layer_norm_backward(
        x, y, x.shape[-1:], p[:, :1].contiguous(), p[:, 1:2].contiguous(), p[0], p[1], (True, True, True)
    ),
    "aten::embedding": lambda x, y, p, i: F.embedding(i[:, 0], x),
    "aten::embedding_dense_backward": lambda x, y, p, i: aten.embedding_dense_backward(
        x, i[:, 0].contiguous(), 4 * x.shape[0], -1, False
    ),
    "aten::index_select": lambda x, y, p, i: x.index_select(0, i[:, 0]),
    "aten::cat": lambda x, y, p, i: torch.cat([x, y]),
    "aten::tril": lambda x, y, p, i: x.tril(),
    "aten::zero": lambda x, y, p, i: aten.zero(x),
    "aten::fill.Scalar": lambda x, y, p, i: aten.fill(x, 1.0),
}
"""Operator -> a call that meets it, of x, y (normal), p (0.1 to 1.1), i (int64, below 8), all square."""


def _inputs(side: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(side)
    x, y = (torch.randn(side, side, generator=generator).to(dtype) for _ in range(2))
    p = (torch.rand(side, side, generator=generator) + 0.1).to(dtype)
    return x, y, p, torch.randint(0, 8, (side, side), generator=generator)


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


def _seconds(call: Call, inputs: Sequence[torch.Tensor], budget: float) -> float:
    """Shortest of the calls that fit into `budget` seconds, at least five: other processes only add time."""
    time.sleep(REST_SECONDS)
    call(*inputs)  # wakes the route's own threads
    times: list[float] = []
    while len(times) < 5 or sum(times) < budget:
        start = time.perf_counter()
        call(*inputs)
        times.append(time.perf_counter() - start)
    return min(times)


def measure(name: str, dtype: torch.dtype, rounds: int = 3) -> dict[str, list[float]]:
    """Seconds per call by route, one for each of SIDES; routes that are wrong are missing."""
    entry, call = table[name], CALLS[name]
    found: dict[str, list[float]] = {route: [] for route in entry.routes(dtype)}
    for side in SIDES:
        inputs = _inputs(side, dtype)
        exact = call(*(t.double() if t.is_floating_point() else t for t in inputs))
        lent = [t.to("npu") for t in inputs]
        times: dict[str, list[float]] = {route: [] for route in found}
        for _ in range(rounds):
            for route in list(found):
                entry.handle.set_auto(dtype, route, route, 0)
                # torch's own kernel stays whatever it gives: a sum may be too large for float16.
                if route != "host" and not times[route] and _error(call(*lent), exact) > TOLERANCE[dtype]:
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
            if not precise(name, dtype):
                seconds.pop("mindspore", None)
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
