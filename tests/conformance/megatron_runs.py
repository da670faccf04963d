"""Runs files of Megatron's unit tests in processes that may crash or hang, and keeps every test's outcome."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PLUGIN = Path(__file__).parent / "megatron_plugin"
POLL_SECONDS = 0.1
START_SECONDS = 600  # until the imports are done, or the file collected, on a busy machine
GRACE_SECONDS = 30  # pytest-timeout has had its turn: what is still silent then will stay so
PEER_SECONDS = 20  # the test of one rank has ended, its peer's goes on
RESTARTS = 12  # processes lost in one file before the rest of it is given up
WORST_LAST = ("passed", "skipped", "failed", "timeout", "crash")

FLAVOURS: dict[str, tuple[str, dict[str, str]]] = {
    "bridge": ("mlm_bridge", {"MINDSPEED_MS_AUTOLOAD": "1"}),
    "plain": ("mlm_plain", {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}),
}
"""Name -> module imported first, environment: how the same files are run with and without us."""


@dataclass
class Outcome:
    """One test on all ranks: the worst outcome of any."""

    outcome: str
    """passed, skipped, failed, timeout, crash or not run."""
    message: str = ""
    where: str = ""
    seconds: float = 0.0


@dataclass
class FileRun:
    """One file: its tests by id (file-less, from ``::`` on), and what it cost."""

    tests: dict[str, Outcome] = field(default_factory=dict)
    lost: int = 0
    """Processes that crashed or had to be killed."""
    seconds: float = 0.0
    commit: str = ""
    """Of the product, when it ran."""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


class Server:
    """Forks test processes off one that did the imports; a context manager, safe between threads."""

    def __init__(self, root: Path, flavour: str, ranks: int) -> None:
        """Starts it in the checkout `root`; `flavour` is a key of `FLAVOURS`, `ranks` the size of a run."""
        self.root, self.flavour, self.ranks = root, flavour, ranks
        first_import, environment = FLAVOURS[flavour]
        cache = os.path.join(tempfile.gettempdir(), f"mlm_pycache_{os.getuid()}")
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "mlm_server", first_import],
            cwd=root,
            env={
                **os.environ,
                **environment,
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "localhost",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(PLUGIN),
                "PYTHONPYCACHEPREFIX": os.environ.get("PYTHONPYCACHEPREFIX", cache),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._processes: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._codes: dict[int, int] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self._server.stdout:
            if not line.startswith("{"):  # something that Megatron printed while it was imported
                continue
            answer = json.loads(line)
            if "process" in answer:
                self._processes.put(answer["process"])
            else:
                self._codes[answer["ended"]] = answer["code"]
        self._processes.put(None)

    def start(self, **job: Any) -> int:
        """Process id of a new fork; `job` as `mlm_server.py` describes it.

        Raises:
            RuntimeError: the server is gone; its imports failed.
        """
        with self._lock:
            self._server.stdin.write(json.dumps(job) + "\n")
            self._server.stdin.flush()
            process = self._processes.get(timeout=START_SECONDS)
        if process is None:
            raise RuntimeError(f"the {self.flavour} server ended, its error is above: {self._server.args}")
        return process

    def code(self, process: int) -> int | None:
        """Exit code of a fork (minus the signal that ended it); None while it runs."""
        return self._codes.get(process)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # it ended before, which `start` has said
            self._server.stdin.close()
        self._server.wait()


class _Attempt:
    """The processes of one start of a file, one per rank, and what their reports say so far."""

    def __init__(self, server: Server, file: str, limit: int, scratch: Path) -> None:
        self._server, self._limit = server, limit
        options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "mlm_report", "-W", "ignore"]
        options += [f"--timeout={limit}", "--timeout-method=signal", "--rootdir", str(server.root)]
        port = str(_free_port())
        self.reports = [scratch / f"report.{rank}" for rank in range(server.ranks)]
        self.processes = []
        for rank, report in enumerate(self.reports):
            report.write_text("")
            self.processes.append(
                server.start(
                    arguments=[*options, f"--basetemp={scratch / f'tmp{rank}'}", file],
                    log=str(scratch / f"log.{rank}"),
                    environment={
                        "RANK": str(rank),
                        "LOCAL_RANK": str(rank),
                        "MASTER_PORT": port,
                        "MLM_REPORT": str(report),
                        "MLM_DONE": str(scratch / "done"),
                    },
                )
            )

    def events(self) -> list[list[dict[str, Any]]]:
        """Complete lines of every rank's report."""
        return [
            [json.loads(line) for line in report.read_text().splitlines(keepends=True) if line.endswith("\n")]
            for report in self.reports
        ]

    def wait(self) -> str:
        """Until all ranks have finished, or one is lost: "finished", "crash", "timeout" or "apart"."""
        sizes: list[int] = []
        silent_since = time.monotonic()
        while True:
            states = [self._server.code(process) for process in self.processes]
            now = [report.stat().st_size for report in self.reports]
            if now != sizes:
                sizes, silent_since = now, time.monotonic()
                events = self.events()
            finished = [bool(e) and e[-1]["event"] == "finished" for e in events]
            if all(finished):
                return "finished"
            silence = time.monotonic() - silent_since
            lost = any(s is not None and not f for s, f in zip(states, finished, strict=True))
            if lost and silence > 1:  # a last line may still be on its way
                return "crash"
            if any(e and e[-1]["event"] == "end" for e in events) and len(events) > 1:
                outcomes = [{e["id"]: e["outcome"] for e in rank if e["event"] == "end"} for rank in events]
                shared = set.intersection(*(set(o) for o in outcomes))
                if any(len({o[i] for o in outcomes}) > 1 for i in shared):
                    return "apart"
                if silence > PEER_SECONDS and len({len(o) for o in outcomes}) > 1:
                    return "apart"
            started = all(any(e["event"] == "collected" for e in rank) for rank in events)
            if silence > (self._limit + GRACE_SECONDS if started else START_SECONDS):
                return "timeout"
            time.sleep(POLL_SECONDS)

    def stop(self, patience: float) -> list[int | None]:
        """Ends, after `patience` seconds, what still runs, children included; gives the codes from before."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and None in map(self._server.code, self.processes):
            time.sleep(POLL_SECONDS)
        codes = [self._server.code(process) for process in self.processes]
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
        return codes


def _short(file: str, test: str) -> str:
    return test.removeprefix(file).removeprefix("::")


def _merge(run: FileRun, file: str, events: list[list[dict[str, Any]]], ended: str, codes: list) -> set[str]:
    """Adds one attempt's outcomes to `run`; gives the ids that need not run again."""
    ranks = len(events)
    ids = next((e["ids"] for rank in events for e in rank if e["event"] == "collected"), None)
    for event in (e for rank in events for e in rank if e["event"] == "broken"):
        outcome = "skipped" if event.get("skipped") else "failed"
        run.tests.setdefault("(collection)", Outcome(outcome, event["message"], event["where"]))
    if ids is None:
        if "(collection)" not in run.tests:
            kind = "timeout" if ended == "timeout" else "crash"
            run.tests["(collection)"] = Outcome(kind, f"the process ended with {codes} before collection")
        return set()
    done = set()
    running = [{e["id"] for e in rank if e["event"] == "start"} for rank in events]
    for names, rank in zip(running, events, strict=True):
        names -= {e["id"] for e in rank if e["event"] == "end"}

    def guilty(test: str) -> bool:
        """Whether a rank was lost in it: of a test that waits for a peer in another, nothing is known."""
        if ended == "crash":
            return any(test in names for names, code in zip(running, codes, strict=True) if code is not None)
        return any(test in names for names in running) and not any(
            other in names for names in running for other in ids[: ids.index(test)]
        )

    ends: dict[str, list[dict[str, Any]]] = {}
    for rank in events:
        for event in (e for e in rank if e["event"] == "end"):
            ends.setdefault(event["id"], []).append(event)
    for test in ids:
        found = ends.get(test, [])
        worst = max(found, key=lambda e: WORST_LAST.index(e["outcome"]), default=None)
        if len(found) < ranks:
            if not guilty(test):
                continue
            if worst is None or worst["outcome"] in ("passed", "skipped"):
                worst = {"outcome": "timeout", "message": "no answer"}
                if ended == "crash":
                    signals = [signal.Signals(-c).name if c < 0 else f"exit status {c}" for c in codes if c]
                    worst = {"outcome": "crash", "message": f"the process ended with {', '.join(signals)}"}
        if "Timeout" in worst.get("message", "") and worst["outcome"] == "failed":
            worst["outcome"] = "timeout"
        run.tests[_short(file, test)] = Outcome(
            worst["outcome"], worst.get("message", ""), worst.get("where", ""), worst.get("seconds", 0.0)
        )
        done.add(test)
    return done


def run_file(server: Server, file: str, limit: int, logs: Path | None = None) -> FileRun:
    """Runs one test file and starts it again behind each crash or hang.

    Args:
        server: of the checkout, the flavour and the number of ranks.
        file: the test file, relative to the checkout.
        limit: seconds a test may take.
        logs: folder that gets the processes' output; None: thrown away.
    """
    run = FileRun()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mlm_") as folder:
        scratch = Path(folder)
        done: set[str] = set()
        for _ in range(RESTARTS):
            attempt = _Attempt(server, file, limit, scratch)
            ended = ""
            try:
                ended = attempt.wait()
            finally:
                codes = attempt.stop(5 if ended == "finished" else 0)
            events = attempt.events()
            new = _merge(run, file, events, ended, codes)
            done |= new
            if ended == "finished":
                break
            run.lost += 1
            if not new:
                break
            (scratch / "done").write_text("\n".join(sorted(done)))
        else:
            last = next((e["ids"] for rank in events for e in rank if e["event"] == "collected"), [])
            for test in (t for t in last if t not in done):
                message = f"{RESTARTS} processes of this file were lost"
                run.tests[_short(file, test)] = Outcome("not run", message)
        if logs:
            for log in scratch.glob("log.*"):
                name = f"{server.flavour}.{server.ranks}.{file.replace('/', '.')}{log.suffix}"
                (logs / name).write_bytes(log.read_bytes())
    run.seconds = round(time.monotonic() - begin, 1)
    return run
