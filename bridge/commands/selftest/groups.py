"""The groups of rows, each in processes of its own: one for each card that it needs.

A process that ends or hangs is a failing row, named after the case that it was in; another process goes on
with the case after it.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Found = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """One group.

    Attributes:
        module: which module has its ``cases()``; relative to this package with a dot.
        what: what it looks at.
        cards: how many processes, each with a card of its own.
        seconds: it ends after them, with what it has.
        silence: seconds after which a case counts as hanging; the first also starts the device.
        environment: variables of its processes.
    """

    name: str
    module: str
    what: str
    cards: int = 1
    seconds: float = 120
    environment: Mapping[str, str] = field(default_factory=dict)
    silence: float = 90


GROUPS = (
    Group("versions", ".machine", "driver, CANN, NNAL, SoC, Python packages"),
    Group("memory", ".memory", "allocation, statistics, copies"),
    Group("rules", ".rules", "what one sentence says an operator does"),
    Group(
        "lowerings",
        ".lowerings",
        "every aten operator with a kernel of MindSpore, forward and backward",
        1,
        180,
    ),
    Group("kernels", ".kernels", "every fused kernel, forward and backward", 1, 180),
    Group("collectives", ".collectives", "collectives by dtype and layout of memory", 2),
    Group("lost peer", ".lost_peer", "a rank that leaves", 2, 90, {"HCCL_EXEC_TIMEOUT": "30"}),
    Group("training", ".training", "20 steps of GPT against a curve of plain torch", 1, 240),
    Group("training TP 2 + SP", ".training", "the same, tensor and sequence parallel", 2, 240),
    Group("training PP 2", ".training", "the same, in two stages", 2, 240),
    Group("training EP 2", ".training", "the same with experts on two cards", 2, 240),
)

RESTARTS = 8
"""So many processes may end early before the rest of a group is given up."""
BROKEN = 70
"""Exit status of a process whose device is of no use after the case that it has reported."""


def run(group: Group, only: str, environment: Mapping[str, str]) -> Iterator[Found]:
    """The rows of a group, those whose names contain `only`."""
    deadline, first = time.monotonic() + group.seconds, 0
    for _ in range(RESTARTS):
        with tempfile.TemporaryDirectory(prefix="selftest") as folder:
            attempt = _Attempt(group, only, first, environment, Path(folder))
            stuck = attempt.wait(deadline)
            yield from attempt.rows()
            if not stuck:
                return
            if not attempt.reported:
                yield row(group, attempt.name, "fail", stuck)
            if attempt.number < 0:
                return
            first = attempt.number + 1
        if time.monotonic() > deadline:
            return
    yield row(group, "the rest", "fail", f"{RESTARTS} processes ended early, what follows did not run")


def row(group: Group, name: str, status: str, why: str) -> Found:
    """A row that no process has made."""
    return {"group": group.name, "name": name, "status": status, "detail": why, "counts": {}}


class _Attempt:
    """Processes of a group from case `first` on.

    `number`, `name`: the case that was the last to begin, -1 where none did; `reported`: it has a row that
    fails.
    """

    def __init__(
        self, group: Group, only: str, first: int, environment: Mapping[str, str], folder: Path
    ) -> None:
        self.number, self.name, self.reported, self._group = -1, "start", False, group
        self._files = [folder / f"rank{rank}.jsonl" for rank in range(group.cards)]
        self._logs = [folder / f"rank{rank}.log" for rank in range(group.cards)]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {
            **{"WORLD_SIZE": str(group.cards), "LOCAL_WORLD_SIZE": str(group.cards)},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        }
        worker = [sys.executable, "-m", f"{__package__}.worker", group.name, group.module, str(first), only]
        self._processes = []
        for rank, (file, log) in enumerate(zip(self._files, self._logs, strict=True)):
            file.touch()
            own = {**environment, **group.environment, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with log.open("w") as output:
                self._processes.append(
                    subprocess.Popen([*worker, str(file)], env=own, stdout=output, stderr=output)
                )

    def wait(self, deadline: float) -> str:
        """Empty when all processes did all; else one sentence on what happened, and none is left."""
        heard, said = time.monotonic(), -1
        why = ""
        while not why:
            codes = [process.poll() for process in self._processes]
            now, size = time.monotonic(), sum(file.stat().st_size for file in self._files)
            if size != said:
                heard, said = now, size
            failed = [rank for rank, code in enumerate(codes) if code]
            if failed:
                time.sleep(0.5 if len(failed) < len(codes) else 0)  # the others may say more
                why = self._ending(failed[0])
            elif None not in codes:
                break
            elif now > deadline:
                why = f"the group took more than {self._group.seconds:.0f} s"
            elif now - heard > self._group.silence:
                why = f"it hangs: nothing for {now - heard:.0f} s"
            else:
                time.sleep(0.05)
        for process in self._processes:
            process.kill()
            process.wait()
        lines = [self._lines(rank) for rank in range(len(self._files))]
        # The rank that is behind is the one that failed, or for which the others wait.
        began = min(
            ([each for each in found if "began" in each] or [{}])[-1].get("began", -1) for found in lines
        )
        if began >= 0:
            self.number = began
            self.name = next(each["name"] for each in lines[0] if each.get("began") == began)
        done = [each["row"] for found in lines for each in found if each.get("number") == self.number]
        self.reported = any(each["status"] == "fail" for each in done)
        return why

    def _ending(self, rank: int) -> str:
        code = self._processes[rank].returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        text = [line for line in self._logs[rank].read_text(errors="replace").splitlines() if line.strip()]
        return f"process {rank} ended with {how}: {' / '.join(text[-3:])[-600:] or 'it said nothing'}"

    def _lines(self, rank: int) -> list[Found]:
        return [json.loads(line) for line in self._files[rank].read_text().splitlines() if line.endswith("}")]

    def rows(self) -> Iterator[Found]:
        """A row of each case: that of the rank that says something worse than the others, else of rank 0."""
        by_number: dict[int, list[Found]] = {}
        for rank in range(len(self._files)):
            for line in self._lines(rank):
                if "row" in line:
                    by_number.setdefault(line["number"], []).append(line["row"])
        for number in sorted(by_number):
            ranks = by_number[number]
            wrong = [rank for rank, row in enumerate(ranks) if row["status"] == "fail"]
            worst = ranks[wrong[0]] if wrong else max(ranks, key=lambda row: row["error"] or 0.0)
            if wrong and len(ranks) > 1:
                worst = {**worst, "detail": f"rank {wrong[0]}: {worst['detail']}"}
            yield worst
