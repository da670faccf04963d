"""Worker processes that may crash or hang: a lost worker is one result, not the end of the run."""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 300  # torch, its operator database and MindSpore, on a busy machine


class WorkerLost(Exception):
    """The worker died or was killed for being silent; `result` is crash or timeout."""

    def __init__(self, result: str, message: str) -> None:
        super().__init__(message)
        self.result = result


class Worker:
    """One process of :mod:`.worker`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.conformance.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._buffer = b""
        self.receive(START_SECONDS)

    def send(self, task: dict[str, Any]) -> None:
        self._process.stdin.write(json.dumps(task).encode() + b"\n")
        self._process.stdin.flush()

    def receive(self, seconds: float) -> dict[str, Any]:
        """Next answer.

        Raises:
            WorkerLost: the process ended, or said nothing for `seconds`.
        """
        pipe = self._process.stdout
        while b"\n" not in self._buffer:
            if not select.select([pipe], [], [], seconds)[0]:
                self.stop()
                raise WorkerLost("timeout", f"no answer in {seconds:.0f} s")
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                status = self._process.wait()
                name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
                raise WorkerLost("crash", f"the process ended with {name}")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def run(tasks: list[dict[str, Any]], workers: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Yields the rows of all tasks as they come; `seconds` is the limit of one variant of one operator."""
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    rows: queue.SimpleQueue[dict[str, Any] | BaseException | None] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    threads = [
        threading.Thread(target=_serve, args=(waiting, rows, seconds), daemon=True) for _ in range(workers)
    ]
    for thread in threads:
        thread.start()
    for _ in threads:
        while (row := rows.get()) is not None:
            if isinstance(row, BaseException):
                raise row
            yield row


def _serve(waiting: queue.SimpleQueue, rows: queue.SimpleQueue, seconds: float) -> None:
    worker: Worker | None = None
    try:
        while True:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                break
            worker = _perform(task, worker, rows, seconds)
    except BaseException as error:  # handed to the thread that reads the rows
        rows.put(error)
    finally:
        if worker is not None:
            worker.stop()
        rows.put(None)


def _perform(task: dict, worker: Worker | None, rows: queue.SimpleQueue, seconds: float) -> Worker | None:
    """Runs one task; after a loss the remaining variants go to a fresh worker."""
    left = list(task["variants"])
    while left:
        worker = worker or Worker()
        worker.send({**task, "variants": left})
        try:
            while not (answer := worker.receive(seconds)).get("done"):
                if "row" in answer:
                    rows.put(answer["row"])
                    left.remove(answer["row"]["variant"])
        except WorkerLost as loss:
            worker = None
            variant = left.pop(0)
            rows.put(
                {
                    **{"op": task["op"], "dtype": task["dtype"], "variant": variant, "result": loss.result},
                    **{"passed": 0, "failed": 1, "skipped": 0, "routes": {}, "errors": {str(loss): 1}},
                }
            )
    return worker
