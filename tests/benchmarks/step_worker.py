"""Megatron's trainer, whose steps wait until they are asked for: what tests/benchmarks/step.py times.

    python [-m tests.reference.plain_torch] tests/benchmarks/step_worker.py FLAGS

Reads commands from stdin, one a line, and answers each with one line of JSON on stdout:

* ``step N``: N training steps; ``{"seconds": [...], "cpu": CPU seconds of all threads, "loss": last loss,
  "peak": bytes}``, where peak is the largest resident size of the process since it started;
* ``coverage``: the rows counted since the last one (an empty list on plain torch).
"""

import mindspeed_ms.patch  # noqa: F401, I001 - before torch.cuda and Megatron are used

import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

PRETRAIN = Path(__file__).resolve().parents[2] / "examples" / "pretrain_gpt.py"


def peak_bytes() -> int:
    """Largest resident size that this process has had."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM: peak memory is measured on Linux only")


def coverage_rows() -> list[dict[str, Any]]:
    """Operators by time since the last call; none where the device is not on."""
    if "mindspeed_ms.device" not in sys.modules:
        return []
    from mindspeed_ms.routes import coverage

    rows = coverage.snapshot()
    coverage.reset()
    return rows


class Steps:
    """Megatron's ``train_step``, which runs when a command asks for it and reports to ``answers``."""

    def __init__(self, train_step: Callable[..., Any], answers: TextIO) -> None:
        self._train_step, self._answers = train_step, answers
        self._seconds: list[float] = []
        self._left = 0
        self._cpu = 0.0

    def _answer(self, value: Any) -> None:
        self._answers.write(json.dumps(value) + "\n")

    def _wait(self) -> None:
        while not self._left:
            command, *numbers = sys.stdin.readline().split() or ["end"]
            if command == "end":
                os._exit(0)  # the trainer has many steps to go, and nothing to save
            if command == "step":
                self._left, self._seconds, self._cpu = int(numbers[0]), [], time.process_time()
            else:
                self._answer(coverage_rows())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._wait()
        start = time.perf_counter()
        result = self._train_step(*args, **kwargs)
        loss = float(result[0]["lm loss"])
        self._seconds.append(time.perf_counter() - start)
        self._left -= 1
        if not self._left:
            cpu = time.process_time() - self._cpu
            self._answer({"seconds": self._seconds, "cpu": cpu, "loss": loss, "peak": peak_bytes()})
        return result


def main() -> None:
    """Trains, a step at a time, until stdin ends."""
    # Answers have their own channel: Megatron prints to stdout whenever it likes.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    from megatron.training import training

    training.train_step = Steps(training.train_step, answers)
    sys.path.insert(0, str(PRETRAIN.parent))
    runpy.run_path(str(PRETRAIN), run_name="__main__")


if __name__ == "__main__":
    main()
