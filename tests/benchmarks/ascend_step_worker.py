"""A stock pretrain script of which one step is looked at: what tests/benchmarks/ascend_step.py starts.

    python -m mindspeed_ms run tests/benchmarks/ascend_step_worker.py count|record|time FOLDER SCRIPT FLAGS

The step after two others is looked at. ``count``: FOLDER/counts.json gets the package's rows of coverage,
what crossed the bus, the simulator's counters. ``record``: FOLDER/calls gets MindSpore's calls. ``time``:
FOLDER/times.json gets seconds of steps and, taken in turns, of the calls in FOLDER/calls.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks import ascend_calls  # noqa: E402
from tests.cann import counters  # noqa: E402

WARM = 2
"""Steps before the first one that is looked at."""


class Count:
    """Counts what one step makes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def step(self, index: int, step: Callable[[], Any]) -> Any:
        from mindspeed_ms.routes import coverage

        if index != WARM:
            return step()
        coverage.reset()
        counters.reset()
        result = step()
        counts = {**coverage.report(), "simulator": counters.read()}
        (self._folder / "counts.json").write_text(json.dumps(counts))
        return result


class Record:
    """Records the calls of one step."""

    def __init__(self, folder: Path) -> None:
        # Here, because it wraps MindSpore's names before the package has taken any of them.
        self._folder, self._recorder = folder, ascend_calls.Recorder()

    def step(self, index: int, step: Callable[[], Any]) -> Any:
        if index != WARM:
            return step()
        self._recorder.start()
        result = step()
        ascend_calls.save(self._recorder.stop(), self._folder / "calls")
        return result


class Time:
    """Times steps, and the recorded calls after each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._calls: Callable[[], None] | None = None
        self._rows: list[dict[str, float]] = []

    def step(self, index: int, step: Callable[[], Any]) -> Any:
        import mindspore as ms
        from mindspeed_ms.routes import coverage

        if index < WARM:
            return step()
        if self._calls is None:
            self._calls, self._number = ascend_calls.replay(self._folder / "calls")
            self._calls()
        coverage.reset()
        ms.runtime.synchronize()
        before = time.perf_counter()
        result = step()
        middle = time.perf_counter()
        operators = sum(row["seconds"] for row in coverage.snapshot())
        ms.runtime.synchronize()
        begin = time.perf_counter()
        self._calls()
        end = time.perf_counter()
        self._rows.append({"step": middle - before, "operators": operators, "raw": end - begin})
        (self._folder / "times.json").write_text(json.dumps({"calls": self._number, "rows": self._rows}))
        return result


def main() -> None:
    """Runs the script with its steps looked at."""
    mode, folder, script, *flags = sys.argv[1:]
    sys.argv = [script, *flags]
    sys.path.insert(0, str(Path(script).parent))
    looked_at = {"count": Count, "record": Record, "time": Time}[mode](Path(folder))
    from megatron.training import training

    original, index = training.train_step, 0

    def train_step(*args: Any, **kwargs: Any) -> Any:
        nonlocal index
        index += 1
        return looked_at.step(index - 1, lambda: original(*args, **kwargs))

    training.train_step = train_step
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
