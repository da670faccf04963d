"""Who the ranks of a group are: host, pid and start time of each, exchanged through the group's store.

The first group of a process, torch's default group, also tells who the job's processes are: a rank that dies
before it joins a later group is missed at once, not at that group's timeout.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cache, partial
from pathlib import Path

import torch.distributed as dist
from mindspeed_ms import _native
from mindspeed_ms.comm.errors import CollectiveTimeoutError, PeerLostError
from mindspeed_ms.config import settings


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

    def alive(self) -> bool:
        """Whether the process still runs, as far as this host can tell: True for one of another host."""
        return self.host != host_id() or _native.comm.process_alive(self.pid, self.start_time)


@cache
def host_id() -> str:
    """A name for "processes that see each other's memory files": boot id, pid and network namespace.

    ``MINDSPEED_MS_HOST_ID`` overrides it, for instance where two containers do share both.
    """
    if settings.HOST_ID.value:
        return settings.HOST_ID.value
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


_job: dist.Store | None = None
"""Store of the default group: its members are the job's, by global rank."""


def join(store: dist.Store, rank: int) -> None:
    """Tells the group of ``store`` who its rank ``rank``, this process, is."""
    global _job
    store.set(f"member/{rank}", json.dumps(asdict(Member.this_process())))
    if _job is None:
        _job = store


def leave(store: dist.Store) -> None:
    """Forgets the group of ``store``; without the default group nothing tells who the job's processes are."""
    global _job
    if _job is store:
        _job = None


def read(store: dist.Store, rank: int) -> Member | None:
    """Who rank ``rank`` of the group of ``store`` is; None while it has not joined."""
    key = f"member/{rank}"
    return Member(**json.loads(store.get(key))) if store.check([key]) else None


def check_alive(rank: int, group: str) -> None:
    """Raises PeerLostError when global rank ``rank`` is known to have died; ``group``: what waits for it."""
    member = read(_job, rank) if _job is not None else None
    if member is not None and not member.alive():
        raise PeerLostError(f"rank {rank} (pid {member.pid}) died before it joined group '{group}'")


def members(store: dist.Store, global_ranks: Sequence[int], timeout: timedelta, group: str) -> list[Member]:
    """All members of the group, in rank order; waits for those that have not created the group yet.

    Raises PeerLostError for a rank of this host that died before, CollectiveTimeoutError after ``timeout``.
    """
    found = []
    for r, global_rank in enumerate(global_ranks):
        what, check = f"rank {global_rank} of group '{group}'", partial(check_alive, global_rank, group)
        found.append(Member(**json.loads(wait_for_key(store, f"member/{r}", timeout, what, check))))
    return found
