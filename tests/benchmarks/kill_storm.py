"""Kills a random rank of a training at a random moment, again and again, and trains on from what was saved.

    python -m tests.benchmarks.kill_storm [--kills 200] [--quick] [--seed 1] [--json FILE] [--leave-behind]

Each trial starts Megatron's trainer on 2-4 ranks from the newest checkpoint, and sends SIGKILL to one of
them at a moment drawn from the length of a whole trial, connection and saves included. Marks: every other
rank ends by itself (0 hangs), no process stays and none holds a shared-memory segment, every checkpoint on
disk can be read, and at last each strategy trains to the end of a trial. `--leave-behind` shows that two of
the marks can be missed: every rank then starts a process that outlives it and keeps its segments.

A segment has no name in a file system (tests/distributed/segments.py): it is looked for in the open files and
the mappings of what survives, which the storm inherits (it is the subreaper of all that its ranks start).

Ranks are forked from this process, which has imported everything and used no device, so that a trial costs
seconds. A rank that is killed before all have joined is nobody's peer yet: the launcher ends the others then,
as torchrun does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "distributed")]
os.environ |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "4"}  # read at import: threads, visible devices


import argparse  # noqa: E402
import ctypes  # noqa: E402
import random  # noqa: E402
import runpy  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402

import mindspeed_ms.patch  # noqa: E402, F401 - before Megatron
import mindspore  # noqa: E402, F401 - to have it imported, as torch._dynamo
import ranks  # noqa: E402
import segments  # noqa: E402
import torch._dynamo  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402
from megatron.training import training  # noqa: E402
from strategies import MOCK, OPTIMIZER, PP2, SP, TP2, Strategy, flags  # noqa: E402

from tests.benchmarks.report import Report, arguments  # noqa: E402
from tests.reference.stock_script import PRETRAIN  # noqa: E402

STRATEGIES = {
    "DP2 + distributed optimizer": Strategy(2, OPTIMIZER),
    "TP2 + SP, saving in the background": Strategy(2, f"{TP2} {SP} --async-save"),
    "PP2": Strategy(2, PP2),
    "DP3": Strategy(3, "--global-batch-size 6"),
    "TP2 x DP2": Strategy(4, TP2),
}
ITERATIONS, INTERVAL = 6, 2
"""Iterations of a trial that nobody disturbs, and of a checkpoint."""

TRAINING = (
    f"--num-layers 2 --train-iters 4000 --lr 1e-3 --lr-decay-style constant --exit-interval {ITERATIONS} "
    f"--save-interval {INTERVAL} --save-retain-interval 1000000 --log-interval 1000"
)
ALONE_SECONDS, LAUNCHER_SECONDS, HELPER_SECONDS = 30.0, 30.0, 5.0
"""Time in which the others must have ended by themselves; after the launcher's SIGTERM; and in which the
processes that they started, a checkpoint's writers, must be gone."""

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
MARKS = {
    "hangs": "hangs",
    "leaked segments": "leaked",
    "orphaned processes": "orphans",
    "unreadable checkpoints": "unreadable",
}
"""What must be zero -> field of Tally."""


@dataclass
class Trial:
    """Running ranks of one trial: processes still alive, exit codes of the others."""

    log: Path
    joined: int
    alive: dict[int, int] = field(default_factory=dict)  # rank -> pid
    codes: dict[int, int] = field(default_factory=dict)

    def wait(self, seconds: float) -> bool:
        """Reaps ranks that end within ``seconds``; whether none is left."""
        deadline = time.monotonic() + seconds
        while self.alive:
            for rank, pid in list(self.alive.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
                    del self.alive[rank]
            if not self.alive or time.monotonic() > deadline:
                break
            time.sleep(0.01)
        return not self.alive

    def signal(self, number: int) -> None:
        """Sends a signal to every rank that is left."""
        for pid in self.alive.values():
            os.kill(pid, number)

    def all_joined(self, world: int) -> bool:
        """Whether every rank had built its groups by now."""
        os.set_blocking(self.joined, False)
        try:
            return len(os.read(self.joined, world)) == world
        except BlockingIOError:
            return False


def inherit_orphans() -> None:
    """From now on a process whose parent dies becomes a child of this one, not of init."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def survivors() -> tuple[list[int], dict[int, set[int]]]:
    """What is left of a trial whose ranks have all ended: processes, and the segments that these hold.

    Processes have HELPER_SECONDS to end; those that are left then are killed after they have been looked at.
    """
    deadline = time.monotonic() + HELPER_SECONDS
    while left := _running():
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    found = segments.held(left)
    for process in left:
        print(f"left of a rank: {_description(process)}", file=sys.stderr)
        os.kill(process, signal.SIGKILL)
    while _running():
        time.sleep(0.02)
    return left, found


def _running() -> list[int]:
    """Descendants of this process; those that have ended are reaped first."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return []
    return segments.descendants(os.getpid())


def _description(process: int) -> str:
    """What a process is and where it waits, for a human to read."""
    folder = Path(f"/proc/{process}")
    words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return f"{process}, in {(folder / 'wchan').read_text()}: {words}"


class Rank(BaseException):
    """Raised in a forked process, to leave the storm and become the rank."""

    def __init__(self, words: list[str], joined: int) -> None:
        super().__init__()
        self.words, self.joined = words, joined


def start(strategy: Strategy, save: Path, log: Path, socket: bool) -> Trial:
    """Forks the ranks. ``socket``: they share memory over one, not by /proc. Raises Rank in each."""
    words = [*flags(strategy, MOCK), *TRAINING.split()]
    words += ["--save", str(save), "--load", str(save)]
    receive, send = os.pipe()
    trial, port = Trial(log, receive), ranks.free_port()
    log.write_text("")
    for rank in range(strategy.ranks):
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(strategy.ranks),
                "LOCAL_WORLD_SIZE": str(strategy.ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "MINDSPEED_MS_SEGMENT": "socket" if socket else "proc",
                "MINDSPEED_MS_FLIGHT_DIR": str(log.parent),
            }
            file = os.open(log, os.O_WRONLY | os.O_APPEND)
            for stream in (sys.stdout, sys.stderr):
                os.dup2(file, stream.fileno())
            raise Rank(words, send)
        trial.alive[rank] = pid
    os.close(send)
    return trial


def become(rank: Rank, leave_behind: bool) -> None:
    """Trains, as Megatron's trainer does; tells the storm when all groups are built.

    `leave_behind`: starts a process after a step, when the ranks have shared memory, in a session of its own;
    it keeps the segments and never ends.
    """
    initialize, train_step = training.initialize_megatron, training.train_step

    def initialize_and_tell(*args: Any, **kwargs: Any) -> None:
        initialize(*args, **kwargs)
        os.write(rank.joined, b".")

    def step_and_leave_behind(*args: Any, **kwargs: Any) -> Any:
        training.train_step = train_step
        result = train_step(*args, **kwargs)
        if os.fork() == 0:
            os.setsid()
            while True:
                signal.pause()
        return result

    training.initialize_megatron = initialize_and_tell
    if leave_behind:
        training.train_step = step_and_leave_behind
    sys.argv = [str(PRETRAIN), *rank.words]
    runpy.run_path(str(PRETRAIN), run_name="__main__")


def saved_iterations(save: Path) -> list[int]:
    """Iterations whose checkpoints are finished: Megatron's writer ends with the file of metadata."""
    return sorted(int(file.parent.name[5:]) for file in save.glob("iter_*/.metadata"))


def unreadable(save: Path) -> list[str]:
    """What is wrong with the checkpoints below ``save``, the tracker file included."""
    wrong, saved = [], saved_iterations(save)
    tracker = save / "latest_checkpointed_iteration.txt"
    if tracker.exists() and int(tracker.read_text()) not in saved:
        wrong.append(f"the tracker names iteration {tracker.read_text()}, there are {saved}")
    for iteration in saved:
        reader = dcp.FileSystemReader(save / f"iter_{iteration:07d}")
        try:
            parts = reader.read_metadata().state_dict_metadata.items()
            tensors = {name: part for name, part in parts if hasattr(part, "size")}
            whole = {n: torch.empty(part.size, dtype=part.properties.dtype) for n, part in tensors.items()}
            dcp.load(whole, storage_reader=reader, no_dist=True)
        except Exception as error:  # whatever a damaged file makes the reader raise
            wrong.append(f"iteration {iteration}: {error}")
    return wrong


@dataclass
class Tally:
    """What the trials of one strategy came to."""

    seconds: float = 0.0  # of a trial that nobody disturbs
    kills: int = 0
    while_joining: int = 0
    hangs: int = 0
    leaked: int = 0
    orphans: int = 0
    unreadable: int = 0
    ended_after: list[float] = field(default_factory=list)
    checkpoints: int = 0

    def count(self, left: list[int], kept: dict[int, set[int]]) -> None:
        """Adds what `survivors` found."""
        self.orphans += len(left)
        self.leaked += len(kept)


def undisturbed(strategy: Strategy, save: Path, log: Path, tally: Tally) -> float:
    """Seconds of a trial without a kill; RuntimeError with the log when it fails."""
    begin = time.monotonic()
    trial = start(strategy, save, log, socket=True)
    ended = trial.wait(600)
    trial.signal(signal.SIGKILL)
    trial.wait(10)
    os.close(trial.joined)
    if not ended or any(trial.codes.values()):
        raise RuntimeError(f"the undisturbed training failed, {trial.codes}:\n{log.read_text()[-3000:]}")
    seconds = time.monotonic() - begin
    tally.count(*survivors())
    return seconds


def kill_one(strategy: Strategy, save: Path, log: Path, tally: Tally, draw: random.Random) -> None:
    """One trial: starts, kills, waits for the others, looks for what is left behind."""
    trial = start(strategy, save, log, socket=draw.random() < 0.5)
    trial.wait(draw.uniform(0, tally.seconds))
    if not trial.alive:  # faster than the undisturbed one: nothing was killed
        os.close(trial.joined)
        return
    joined = trial.all_joined(strategy.ranks)
    victim = draw.choice(sorted(trial.alive))
    killed = time.monotonic()
    os.kill(trial.alive[victim], signal.SIGKILL)
    tally.kills += 1
    tally.while_joining += not joined
    alone = joined and trial.wait(ALONE_SECONDS)
    if alone:
        tally.ended_after.append(time.monotonic() - killed)
    trial.signal(signal.SIGTERM)
    if not trial.wait(LAUNCHER_SECONDS) or (joined and not alone):
        tally.hangs += 1
        print(f"hang after the death of rank {victim}:\n{log.read_text()[-3000:]}", file=sys.stderr)
    trial.signal(signal.SIGKILL)
    trial.wait(10)
    os.close(trial.joined)
    tally.count(*survivors())
    wrong = unreadable(save)
    tally.unreadable += len(wrong)
    print("".join(f"{line}\n" for line in wrong), end="", file=sys.stderr)


def storm(options: argparse.Namespace, root: Path) -> dict[str, Tally]:
    """All trials. Raises Rank in the forked processes."""
    draw = random.Random(options.seed)
    chosen = list(STRATEGIES)[: 2 if options.quick else None]
    kills = options.kills or (12 if options.quick else 200)
    tallies = {name: Tally() for name in chosen}
    for number, name in enumerate(chosen):
        tally = tallies[name]
        tally.seconds = undisturbed(STRATEGIES[name], root / str(number), root / "log", tally)
    while (done := sum(tally.kills for tally in tallies.values())) < kills:
        number = draw.randrange(len(chosen))
        kill_one(STRATEGIES[chosen[number]], root / str(number), root / "log", tallies[chosen[number]], draw)
        if done % 20 == 0:
            print(f"{done} kills ...", flush=True)
    for number, name in enumerate(chosen):
        undisturbed(STRATEGIES[name], root / str(number), root / "log", tallies[name])
        tallies[name].checkpoints = len(saved_iterations(root / str(number)))
    return tallies


def main() -> int:
    """Command line; returns the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, help="default: 200, with --quick 12")
    parser.add_argument("--seed", type=int, default=1, help="of ranks and moments")
    parser.add_argument("--leave-behind", action="store_true", help="each rank leaves a process and segments")
    options = parser.parse_args()
    report = Report("kill_storm", "random SIGKILLs during training", options)
    root = Path(tempfile.mkdtemp())
    inherit_orphans()
    try:
        tallies = storm(options, root)
    except Rank as rank:
        become(rank, options.leave_behind)
        return 0
    shutil.rmtree(root)
    for name, tally in tallies.items():
        report.row(
            strategy=name,
            kills=tally.kills,
            while_joining=tally.while_joining,
            hangs=tally.hangs,
            leaked_segments=tally.leaked,
            orphans=tally.orphans,
            unreadable_checkpoints=tally.unreadable,
            longest_end_s=max(tally.ended_after, default=None),
            checkpoints_at_the_end=tally.checkpoints,
        )
    kills, joining = (sum(getattr(t, name) for t in tallies.values()) for name in ("kills", "while_joining"))
    report.summary["kills while ranks were joining"] = f"{joining} of {kills} ({joining / kills:.0%})"
    for what, name in MARKS.items():
        total = sum(getattr(tally, name) for tally in tallies.values())
        report.mark(f"0 {what}", total == 0, str(total))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
