"""A stock pretrain script of which one step is looked at: what tests/benchmarks/ascend_step.py starts.

    python -m mindspeed_ms run tests/benchmarks/ascend_step_worker.py count|record|time FOLDER SCRIPT FLAGS

The step after two others is looked at. ``count``: FOLDER/counts.json gets the package's rows of coverage,
what crossed the bus, the simulator's counters. ``record``: FOLDER/calls gets MindSpore's calls. ``time``:
FOLDER/times.json gets seconds of steps, of the calls in FOLDER/calls alone, and of MindSpore's in steps.
"""

from __future__ import annotations

import json
import os
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
        self._recorder.stop()
        ascend_calls.save(self._recorder.calls, self._folder / "calls")
        return result


def thread_seconds() -> float:
    """Time in which the threads that run Python and autograd ran: other processes cannot lengthen it."""
    seconds = time.thread_time()
    for task in Path("/proc/self/task").iterdir():
        if task.name != str(os.getpid()) and (task / "comm").read_text().startswith("pt_autograd"):
            seconds += int((task / "schedstat").read_text().split()[0]) * 1e-9
    return seconds


class Time:
    """Times steps in turns: one with its operators, the recorded calls, one with MindSpore's calls in it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stopwatch = folder, ascend_calls.Stopwatch()
        self._calls: Callable[[], None] | None = None
        self._rows: list[dict[str, Any]] = []
        self._row: dict[str, Any] = {}

    def step(self, index: int, step: Callable[[], Any]) -> Any:
        from mindspeed_ms import _runtime

        if index < WARM:
            return step()
        if self._calls is None:
            self._calls, self._number = ascend_calls.replay(self._folder / "calls")
            self._calls()
            _runtime.count_thread_time(True)
        return self._stopped(step) if self._row else self._counted(step)

    def _counted(self, step: Callable[[], Any]) -> Any:
        import mindspore as ms
        from mindspeed_ms.routes import coverage

        coverage.reset()
        ms.runtime.synchronize()
        before = thread_seconds()
        result = step()
        middle = thread_seconds()
        rows = coverage.snapshot()
        ms.runtime.synchronize()
        begin = thread_seconds()
        self._calls()  # type: ignore[misc]
        self._row = {
            "step": middle - before,
            "operators": sum(row["seconds"] for row in rows),
            "calls_alone": thread_seconds() - begin,
            "by_operator": rows,
        }
        return result

    def _stopped(self, step: Callable[[], Any]) -> Any:
        self._stopwatch.start()
        result = step()
        self._stopwatch.stop()
        self._rows.append({**self._row, "calls_in_step": self._stopwatch.seconds()})
        self._row = {}
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
