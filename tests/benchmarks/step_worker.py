"""One trainer of the recipe that runs steps when told to: what tests/benchmarks/step.py times.

    python [-m tests.reference.plain_torch] tests/benchmarks/step_worker.py FLAGS

Reads commands from stdin, one a line, and answers each with one line of JSON on stdout:

* ``step N``: N training steps; ``{"seconds": [...], "cpu": CPU seconds of all threads, "loss": last loss,
  "peak": bytes}``, where peak is the largest resident size of the process since it started;
* ``coverage``: the rows counted since the last one (an empty list on plain torch).
"""

import mindspeed_ms.patch  # noqa: F401, I001 - before torch.cuda and Megatron are used

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))


def peak_bytes() -> int:
    """Largest resident size that this process has had."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM: peak memory is measured on Linux only")


def steps(trainer: Any, count: int) -> dict[str, Any]:
    """Runs `count` training steps."""
    from recipe.step import train_step

    seconds, result, before = [], None, time.process_time()
    for _ in range(count):
        start = time.perf_counter()
        result = train_step(
            trainer.args,
            trainer.progress,
            trainer.training,
            trainer.model,
            trainer.optimizer,
            trainer.scheduler,
        )
        seconds.append(time.perf_counter() - start)
    cpu = time.process_time() - before
    return {"seconds": seconds, "cpu": cpu, "loss": result.loss, "peak": peak_bytes()}


def coverage_rows() -> list[dict[str, Any]]:
    """Operators by time since the last call; none where the device is not on."""
    if "mindspeed_ms.device" not in sys.modules:
        return []
    from mindspeed_ms.routes import coverage

    rows = coverage.snapshot()
    coverage.reset()
    return rows


def main() -> None:
    """Builds the trainer, then serves commands until stdin ends."""
    # Answers have their own channel: Megatron prints to stdout whenever it likes.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from recipe.arguments import parse_args
    from recipe.distributed import finish, initialize
    from recipe.train import Trainer

    args = parse_args()
    initialize(args)
    trainer = Trainer(args)
    for line in sys.stdin:
        command, *numbers = line.split()
        answer = steps(trainer, int(numbers[0])) if command == "step" else coverage_rows()
        answers.write(json.dumps(answer) + "\n")
    finish()


if __name__ == "__main__":
    main()
