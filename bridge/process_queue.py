"""A queue for the processes that a rank starts, served by a thread of the rank itself."""

from __future__ import annotations

import queue
import threading
import uuid
from multiprocessing.managers import SyncManager


def served_queue() -> queue.Queue[object]:
    """A queue that forked and spawned processes can share with this one.

    What :meth:`multiprocessing.managers.SyncManager.start` serves in a process of its own, a thread serves
    here: that process would import the main script once more, unpickle what passes through (torch, for a
    checkpoint), and outlive a rank that is killed. The socket has no name in any file system.
    """
    address = f"\0mindspeed_ms-{uuid.uuid4().hex}"
    server = SyncManager(address).get_server()
    threading.Thread(target=server.serve_forever, name="mindspeed_ms queue", daemon=True).start()
    manager = SyncManager(address)
    manager.connect()
    return manager.Queue()
