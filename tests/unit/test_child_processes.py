"""The queue that a rank serves to the processes which write its checkpoint, and how these end."""

import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial

import pytest
from mindspeed_ms._native.comm import process_alive, process_start_time
from mindspeed_ms.comm.child_processes import end_with_parent, served_queue, wait_while_alive

METHODS = ["fork", "spawn", "forkserver"]


def put(queue, value):
    queue.put(value)


@pytest.mark.parametrize("method", METHODS)
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


def start_a_writer_and_die(target, method, pids):
    queue, context = served_queue(), multiprocessing.get_context(method)
    told = context.Event()
    writer = context.Process(target=target, args=(queue, told))
    writer.start()
    pids.send((writer.pid, process_start_time(writer.pid)))
    told.set()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", [put_when_told, wait_for_ever])
def test_a_writer_ends_whose_rank_was_killed(target, method):
    context = multiprocessing.get_context("spawn")  # with a server of its own
    receive, send = context.Pipe(duplex=False)
    rank = context.Process(target=start_a_writer_and_die, args=(target, method, send))
    rank.start()
    pid, started = receive.recv()
    rank.join(30)
    assert rank.exitcode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while process_alive(pid, started):
        assert time.monotonic() < deadline, "the writer waits for a rank that is gone"
        time.sleep(0.02)


def write_for_a_while():
    end_with_parent()
    end_with_parent()
    time.sleep(1.5)  # the parent is looked for every half second
    os._exit(7 if threading.active_count() == 2 else 8)


@pytest.mark.parametrize("method", METHODS)
def test_a_writer_lives_while_its_rank_does(method):
    writer = multiprocessing.get_context(method).Process(target=write_for_a_while)
    writer.start()
    writer.join(60)
    assert writer.exitcode == 7


def serve(asked, done, work):
    """Does ``work`` orders and dies over the next."""
    for _ in range(work):
        done.put(asked.get(timeout=60))
        asked.task_done()
    asked.get(timeout=60)
    done.close()
    done.join_thread()
    os._exit(3)


def ask(answers):
    while True:
        with suppress(queue.Empty):
            return answers.get_nowait()


@pytest.mark.parametrize("method", METHODS)
def test_waits_end_with_the_worker(method):
    context = multiprocessing.get_context(method)
    asked, done = context.JoinableQueue(), context.Queue()
    worker = context.Process(target=serve, args=(asked, done, 1), daemon=True, name="The worker")
    wait_while_alive(lambda: worker, [asked, done], "look above")
    with pytest.raises(queue.Empty):
        done.get_nowait()
    worker.start()
    asked.put("an order")
    asked.join()
    assert done.get(timeout=60) == "an order"
    asked.put("another")
    asked.put(b"too much for a pipe " * 10000)
    sentence = f"The worker, process {worker.pid}, has ended with status 3: look above"
    for wait in (asked.join, partial(ask, done)):
        with pytest.raises(RuntimeError, match=f"^{sentence}$"):
            wait()


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
