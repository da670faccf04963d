"""The queue that a rank serves to the processes which write its checkpoint."""

import multiprocessing
import subprocess
import sys

import pytest
from mindspeed_ms.process_queue import served_queue


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


def test_this_process_puts_and_gets_in_order():
    queue = served_queue()
    for number in range(3):
        queue.put(number)
    assert [queue.get_nowait() for _ in range(3)] == [0, 1, 2]
    assert queue.empty()


def test_a_process_that_serves_one_ends():
    code = "from mindspeed_ms.process_queue import served_queue; served_queue().put(1)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
