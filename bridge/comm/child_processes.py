"""Processes that a rank starts, to write a checkpoint for instance: a queue for them, and how they end."""

from __future__ import annotations

import os
import queue
import threading
import time
import uuid
from multiprocessing import parent_process
from multiprocessing.managers import SyncManager
from typing import Any


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
    """Ends this process, one that :mod:`multiprocessing` started, within a second of its parent's end, kills
    included.

    Raises RuntimeError in any other process.
    """
    parent = parent_process()
    if parent is None:
        raise RuntimeError("end_with_parent() is for processes that multiprocessing started")

    def watch() -> None:
        # Not by the pipe that multiprocessing keeps for this: processes forked later hold it open, too.
        while os.getppid() == parent.pid:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="mindspeed_ms parent", daemon=True).start()
