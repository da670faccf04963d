"""The queue that a rank serves to the processes which write its checkpoint, and how these end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from mindspeed_ms._native.comm import process_alive, process_start_time
from mindspeed_ms.comm.child_processes import end_with_parent, served_queue


def put(queue, value):
    queue.put(value)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_put_into_it(method):
    queue = served_queue()
    assert multiprocessing.active_children() == []  # nobody who could outlive this process
    writer = multiprocessing.get_context(method).Process(target=put, args=(queue, {"rank": 3}))
    writer.start()
    assert queue.get(timeout=60) == {"rank": 3}
    writer.join(30)
    assert writer.exitcode == 0


def put_when_told(queue, told):
    told.wait(60)
    queue.put(1)


def wait_for_ever(queue, told):
    end_with_parent()
    told.wait(60)
    multiprocessing.Event().wait()


def start_a_writer_and_die(target, pids):
    queue, context = served_queue(), multiprocessing.get_context("fork")
    told = context.Event()
    writer = context.Process(target=target, args=(queue, told))
    writer.start()
    pids.send((writer.pid, process_start_time(writer.pid)))
    told.set()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("target", [put_when_told, wait_for_ever])
def test_a_writer_ends_whose_rank_was_killed(target):
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    rank = context.Process(target=start_a_writer_and_die, args=(target, send))
    rank.start()
    pid, started = receive.recv()
    rank.join(30)
    assert rank.exitcode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while process_alive(pid, started):
        assert time.monotonic() < deadline, "the writer waits for a rank that is gone"
        time.sleep(0.02)


def test_this_process_puts_and_gets_in_order():
    queue = served_queue()
    for number in range(3):
        queue.put(number)
    assert [queue.get_nowait() for _ in range(3)] == [0, 1, 2]
    assert queue.empty()


def test_a_process_that_serves_one_ends():
    code = (
        "from mindspeed_ms.comm.child_processes import end_with_parent, served_queue; served_queue().put(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_main_process_has_no_parent_to_end_with():
    with pytest.raises(RuntimeError, match="multiprocessing"):
        end_with_parent()
