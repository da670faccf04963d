"""Processes that a rank starts, to write a checkpoint for instance: a queue for them, and how they end."""

from __future__ import annotations

import functools
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable
from multiprocessing import parent_process
from multiprocessing.managers import SyncManager
from multiprocessing.process import BaseProcess
from typing import Any

from mindspeed_ms import _native


def served_queue() -> queue.Queue[object]:
    """A queue that forked and spawned processes can share with this one.

    What :meth:`multiprocessing.managers.SyncManager.start` serves in a process of its own, a thread serves
    here: that process would import the main script once more, unpickle what passes through (torch, for a
    checkpoint), and outlive a rank that is killed. The socket has no name in any file system.
    """
    address = f"\0mindspeed_ms-{uuid.uuid4().hex}"
    server: Any = SyncManager(address).get_server()
    # A forked child that kept the socket open would connect to itself once this process is gone. The ends of
    # connections are not closed there: threads close them here, and a number may mean another file by then.
    os.register_at_fork(after_in_child=server.listener.close)
    threading.Thread(target=server.serve_forever, name="mindspeed_ms queue", daemon=True).start()
    manager = SyncManager(address)
    manager.connect()
    found: Any = manager.Queue()
    # It lives as long as this process. At its end the proxy would say so to the server, which answers from a
    # new thread: from Python 3.12 on none can be started by then.
    found._close.cancel()
    return found


def end_with_parent() -> None:
    """Ends this process, one that :mod:`multiprocessing` started, within a second of the end, kills included,
    of the process that asked for it. Calling it again changes nothing.

    Raises RuntimeError in any other process.
    """
    parent = parent_process()
    if parent is None or parent.pid is None:
        raise RuntimeError("end_with_parent() is for processes that multiprocessing started")
    _end_with(parent.pid, os.getpid())


@functools.cache  # by process: one that is forked from this one has none of its threads
def _end_with(parent: int, _process: int) -> None:
    started = _native.comm.process_start_time(parent)

    def watch() -> None:
        # Not by getppid(), which is multiprocessing's server where that forked this process, nor by the pipe
        # that multiprocessing keeps for this: processes forked later hold it open, too.
        while _native.comm.process_alive(parent, started):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="mindspeed_ms parent", daemon=True).start()


def wait_while_alive(worker: Callable[[], BaseProcess | None], queues: list[Any], loss: str) -> None:
    """Has the waits on ``queues`` (``join``, ``get_nowait``) that a worker is to answer end with that worker.

    Args:
        worker: gives the process, None before there is one.
        queues: of :mod:`multiprocessing`; a joinable one is waited for, another one asked again and again.
        loss: the end of the sentence: what its work was and what to do.

    A wait raises RuntimeError, in one sentence, once the worker has ended without answering.
    """

    def ended() -> BaseProcess | None:
        process = worker()
        return process if process is not None and process.exitcode is not None else None

    def lost(process: BaseProcess) -> RuntimeError:
        for each in queues:
            each.cancel_join_thread()  # what it did not read would be waited for at this process's end
        status = process.exitcode
        return RuntimeError(f"{process.name}, process {process.pid}, has ended with status {status}: {loss}")

    def join(original: Callable[[], None]) -> None:
        # Nothing wakes the thread when the worker is gone; it is left behind.
        waiting = threading.Thread(target=original, name="mindspeed_ms wait", daemon=True)
        waiting.start()
        while waiting.is_alive():
            process = ended()  # asked first: it may answer and end in between
            waiting.join(0.5)
            if process is not None and waiting.is_alive():
                raise lost(process)

    def get_nowait(original: Callable[[], Any]) -> Any:
        process = ended()
        try:
            return original()
        except queue.Empty:
            if process is not None:
                raise lost(process) from None
            raise

    for each in queues:
        if hasattr(each, "join"):
            each.join = functools.partial(join, each.join)
        else:
            each.get_nowait = functools.partial(get_nowait, each.get_nowait)
