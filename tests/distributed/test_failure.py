"""A rank that dies, leaves, hangs or does something else: the others raise, soon, and the message says it
all."""

import json
import multiprocessing
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import ranks
import segments
import torch
import torch.distributed as dist
from mindspeed_ms.comm import errors

pytestmark = pytest.mark.distributed

SECONDS = 8.0
"""A failure must be raised within this time of its cause: "within seconds", on a loaded machine."""


def victim(rank, world, store, how):
    ranks.init(rank, world, store, seconds=60)
    dist.all_reduce(torch.ones(10))
    store.set(f"through/{rank}", "1")
    if rank == 1:
        # Not before the others are through: the loss must meet them in the collectives below.
        store.wait([f"through/{other}" for other in range(world)], timedelta(seconds=60))
        how_to_fail[how]()
        return None
    start = time.monotonic()

    def train_on():
        for _ in range(1000):
            dist.all_reduce(torch.ones(300_000))
            time.sleep(0.01)

    with pytest.raises(errors.PeerLostError) as caught:
        train_on()
    return time.monotonic() - start, str(caught.value), getattr(caught.value, "__notes__", [])


how_to_fail = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(3),
    "leave": lambda: dist.destroy_process_group(),
}


@pytest.mark.parametrize("how", list(how_to_fail))
def test_lost_rank_is_named(how, tmp_path, monkeypatch):
    monkeypatch.setenv("MINDSPEED_MS_FLIGHT_DIR", str(tmp_path))
    results = multiprocessing.get_context("spawn").Queue()
    store = ranks.free_store()
    processes = ranks.start(victim, 3, store.port, results, how)
    outcome = {}
    while len(outcome) < 2:
        rank, error, value = results.get(timeout=100)
        assert error is None, error
        if rank != 1:
            outcome[rank] = value
    for process in processes:
        process.join(30)
    for rank in (0, 2):
        seconds, text, notes = outcome[rank]
        assert seconds < SECONDS
        assert f"rank 1 (pid {processes[1].pid})" in text
        assert "has left (its process group was destroyed)" in text if how == "leave" else "died" in text
        assert "group 'default_pg' (ranks [0, 1, 2])" in text
        assert "all_reduce #" in text
        assert "SUM, float32, 300000 elements, 1200000 bytes" in text
        path = Path(notes[0].removeprefix("flight record of this rank: "))
        record = json.loads(path.read_text())
        last = record["groups"][0]["collectives"][-1]
        assert last["collective"] == "all_reduce"
        assert last["state"] == "failed"
        assert record["groups"][0]["collectives"][0]["state"] == "completed"


MISMATCHES = {
    "shape": ("100 elements, 400 bytes", "101 elements"),
    "dtype": ("float32", "float64"),
    "op": ("MAX", "SUM"),
    "root": ("root rank 0", "root rank 1"),
    "collective": ("all_reduce #1", "broadcast #1"),
    "message": ("20 bytes", "32 bytes"),
    "splits": ("all_to_all #1", "bytes"),
}


def mismatched(rank, world, store):
    ranks.init(rank, world, store, seconds=60)
    ones = torch.ones(8)
    calls = {
        "shape": lambda g: dist.all_reduce(torch.ones(100 + rank), group=g),
        "dtype": lambda g: dist.all_reduce(
            torch.ones(100, dtype=torch.float64 if rank else torch.float32), group=g
        ),
        "op": lambda g: dist.all_reduce(
            torch.ones(100), dist.ReduceOp.MAX if rank else dist.ReduceOp.SUM, group=g
        ),
        "root": lambda g: [dist.broadcast(torch.ones(100), src=rank, group=g), dist.barrier(g)],
        # A root does not wait for its receivers: the barrier is where rank 0 learns of it at the latest.
        "collective": lambda g: (
            dist.all_reduce(ones, group=g) if rank else [dist.broadcast(ones, 0, group=g), dist.barrier(g)]
        ),
        "message": lambda g: (
            dist.recv(ones, 0, group=g) if rank else [dist.send(torch.ones(5), 1, group=g), dist.barrier(g)]
        ),
        "splits": lambda g: dist.all_to_all_single(torch.empty(4), torch.ones(4), [3, 1], [2, 2], group=g),
    }
    assert set(calls) == set(MISMATCHES)
    outcome = {}
    for case, call in calls.items():
        group = dist.new_group([0, 1], group_desc=case)
        dist.all_reduce(ones.clone(), group=group)
        start = time.monotonic()
        with pytest.raises(errors.MismatchError) as caught:
            call(group)
        outcome[case] = time.monotonic() - start, str(caught.value)
    dist.barrier()  # one failed group leaves the others alone
    return outcome


def test_mismatches_are_named(tmp_path):
    for outcome in ranks.run(mismatched, 2, env={"MINDSPEED_MS_FLIGHT_DIR": str(tmp_path)}):
        for case, parts in MISMATCHES.items():
            seconds, text = outcome[case]
            assert seconds < SECONDS
            for part in (*parts, f"group '{case}' (ranks [0, 1])"):
                assert part in text, text


def late(rank, world, store):
    ranks.init(rank, world, store, seconds=2)
    dist.barrier()
    if rank == 1:
        time.sleep(6)
        return None
    with pytest.raises(errors.CollectiveTimeoutError) as caught:
        dist.all_gather_single(torch.empty(8), torch.ones(4))
    with pytest.raises(errors.CollectiveTimeoutError):  # the group stays failed, nobody hangs in it later
        dist.barrier()
    return str(caught.value)


def test_hang_times_out_and_names_who_is_missing(tmp_path):
    text = ranks.run(late, 2, env={"MINDSPEED_MS_FLIGHT_DIR": str(tmp_path)})[0]
    assert "waited 2 s in all_gather #1 (float32, 4 elements, 16 bytes)" in text
    assert "rank 1 has not entered it, its last collective is barrier #0, finished" in text


def never_comes(rank, world, store):
    ranks.init(rank, world, store, seconds=2)
    if rank == 0:
        with pytest.raises(errors.CollectiveTimeoutError, match=r"rank 1 has not used this group yet"):
            dist.distributed_c10d._get_default_group().monitored_barrier(timedelta(seconds=1))
    else:
        time.sleep(3)


def test_rank_that_never_uses_the_group(tmp_path):
    ranks.run(never_comes, 2, env={"MINDSPEED_MS_FLIGHT_DIR": str(tmp_path)})


def train(rank, world, store):
    # A shell's background job starts with Ctrl-C ignored, and its children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ranks.init(rank, world, store, seconds=60)
    dist.barrier()
    store.set(f"running/{rank}", "1")
    while True:
        dist.all_reduce(torch.ones(300_000))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_everything(number, tmp_path):
    results = multiprocessing.get_context("spawn").Queue()
    store = ranks.free_store()
    env = {"MINDSPEED_MS_FLIGHT_DIR": str(tmp_path), "MINDSPEED_MS_SEGMENT": "socket"}
    processes = ranks.start(train, 2, store.port, results, env=env)
    try:
        store.wait(["running/0", "running/1"], timedelta(seconds=100))
        theirs = segments.held(process.pid for process in processes)
        assert theirs
        os.kill(processes[0].pid, number)
        start = time.monotonic()
        for process in processes:
            process.join(30)
        assert time.monotonic() - start < SECONDS
        assert all(p.exitcode not in (None, 0) for p in processes)
        assert not theirs.keys() & segments.held().keys()
    finally:
        for process in processes:
            process.kill()


def absent(rank, world, store):
    """Rank 1 dies between the default group and the first use of another one; 60 s are its timeout."""
    ranks.init(rank, world, store, seconds=60)
    if rank == 1:
        store.set("victim", str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    group = dist.new_group([0, 1], group_desc="late")
    start = time.monotonic()
    with pytest.raises(errors.PeerLostError) as caught:
        dist.all_reduce(torch.ones(4), group=group)
    return time.monotonic() - start, str(caught.value), store.get("victim").decode()


def test_rank_that_died_before_it_joined_a_group(tmp_path, monkeypatch):
    monkeypatch.setenv("MINDSPEED_MS_FLIGHT_DIR", str(tmp_path))
    results = multiprocessing.get_context("spawn").Queue()
    store = ranks.free_store()
    processes = ranks.start(absent, 2, store.port, results)
    rank, error, value = results.get(timeout=100)
    for process in processes:
        process.join(30)
    assert error is None, error
    assert rank == 0
    seconds, text, pid = value
    assert seconds < SECONDS
    assert text == f"rank 1 (pid {pid}) died before it joined group 'late'"
