"""Groups "training ...": the losses of 20 steps of GPT, and what a step costs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from mindspeed_ms import _runtime, routes
from mindspeed_ms.commands.selftest import gpt
from mindspeed_ms.commands.selftest.rows import Case, Check
from mindspeed_ms.routes import coverage

CURVES = json.loads(Path(__file__).with_name("curves.json").read_text())
"""Model -> losses, made by gpt.py on plain torch in float32."""

ERROR = {
    ("dense", torch.float32): 5e-6,
    ("dense", torch.bfloat16): 5e-3,
    ("experts", torch.float32): 5e-6,
    ("experts", torch.bfloat16): 5e-2,  # rounding sends a token to another expert now and then
}
"""Largest difference of a loss, relative to the largest. The simulated device has 1e-7, 1e-3 and 1.5e-2; a
chip adds float32 numbers in another order."""

LAYOUTS = {
    "training": (gpt.Layout(), ("dense", "experts")),
    "training TP 2 + SP": (gpt.Layout(tensor=2), ("dense",)),
    "training PP 2": (gpt.Layout(pipeline=2), ("dense",)),
    "training EP 2": (gpt.Layout(expert=2), ("experts",)),
}
"""Group -> how the model is split, and which models."""

MEASURED = range(10, gpt.STEPS)
"""Steps that are counted: the first ones compile and fill caches."""


def _case(layout: gpt.Layout, model: str, dtype: torch.dtype) -> Case:
    def run(check: Check) -> None:
        started = 0.0

        def after(step: int) -> None:
            nonlocal started
            if step == MEASURED[0] - 1:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                coverage.reset()
                started = time.perf_counter()

        losses = gpt.train(layout, model == "experts", dtype, after)
        torch.cuda.synchronize()
        seconds, steps = time.perf_counter() - started, len(MEASURED)
        rows = [row for row in coverage.snapshot() if row["why"] != "a tensor is empty"]
        by_cause = _runtime.bus_counters()
        bus = by_cause.values()
        host = [row for row in rows if row["route"] == "host"]
        check.counts = {
            "calls_per_step": sum(row["calls"] for row in rows) / steps,
            "host_calls_per_step": sum(row["calls"] for row in host) / steps,
            **{
                f"{name}_per_step": sum(row[name] for row in bus) / steps
                for name in ("to_device_bytes", "to_host_bytes", "synchronizations")
            },
            "peak_memory_bytes": torch.cuda.max_memory_allocated(),
            "tokens_per_second": round(gpt.TOKENS * steps / seconds, 1),
        }
        crossed = {cause: row["to_device_bytes"] + row["to_host_bytes"] for cause, row in by_cause.items()}
        parts = [f"{cause} {count / steps:.0f} B" for cause, count in crossed.items() if count]
        check.note = f"across the bus in a step: {', '.join(parts)}" if parts else ""
        names = sorted({f"{row['op']} ({row['dtype']})" for row in host})
        check.require(not (host and routes.on_ascend()), f"on the host: {', '.join(names)}")
        # The loss of a model that learns says more the later it is: all of them, as one tensor.
        check.close("losses", torch.tensor(losses), torch.tensor(CURVES[model]), ERROR[model, dtype])

    return Case(f"{model} {str(dtype).removeprefix('torch.')}", run)


def cases(group: str) -> Iterator[Case]:
    """The models of a layout, in both dtypes; first the process groups."""
    layout, models = LAYOUTS[group]
    gpt.start(layout)
    for model in models:
        for dtype in (torch.float32, torch.bfloat16):
            yield _case(layout, model, dtype)
