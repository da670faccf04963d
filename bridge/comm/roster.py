"""Who the ranks of a group are: host, pid and start time of each, exchanged through the group's store."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from mindspeed_ms import _native
from mindspeed_ms.comm.errors import CollectiveTimeoutError

HOST_VARIABLE = "MINDSPEED_MS_HOST_ID"


@dataclass(frozen=True)
class Member:
    """One rank's process. ``host`` is equal for ranks that can share memory, ``start_time`` in clock
    ticks."""

    host: str
    pid: int
    start_time: int

    @staticmethod
    def this_process() -> Member:
        pid = os.getpid()
        return Member(host_id(), pid, _native.comm.process_start_time(pid))


def host_id() -> str:
    """A name for "processes that see each other's memory files": boot id, pid and network namespace.

    ``MINDSPEED_MS_HOST_ID`` overrides it, for instance where two containers do share both.
    """
    chosen = os.environ.get(HOST_VARIABLE)
    if chosen:
        return chosen
    facts = [Path("/proc/sys/kernel/random/boot_id").read_text().strip()]
    facts += [os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "net")]
    return hashlib.sha256("/".join(facts).encode()).hexdigest()[:16]


def wait_for_key(
    store: dist.Store, key: str, timeout: timedelta, what: str, check: Callable[[], None] | None = None
) -> bytes:
    """Value of ``key`` once some rank has set it.

    Polls instead of calling the blocking ``store.get``: a blocked get holds the client's lock, and another
    thread of this process may have to set the very key. ``check`` is called between polls and may raise.
    Raises CollectiveTimeoutError naming ``what`` after ``timeout``.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    pause = 0.0005
    while not store.check([key]):
        if check is not None:
            check()
        if time.monotonic() > deadline:
            raise CollectiveTimeoutError(
                f"{what} did not appear within {timeout.total_seconds():g} s: a rank of the group has not "
                "created it or has died; see that rank's log"
            )
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)
    return store.get(key)


def publish(store: dist.Store, rank: int) -> None:
    """Tells the group who its rank ``rank``, this process, is."""
    store.set(f"member/{rank}", json.dumps(asdict(Member.this_process())))


def members(store: dist.Store, size: int, timeout: timedelta, group: str) -> list[Member]:
    """All members of the group, in rank order; waits for those that have not created the group yet."""
    return [
        Member(**json.loads(wait_for_key(store, f"member/{r}", timeout, f"rank {r} of group '{group}'")))
        for r in range(size)
    ]
