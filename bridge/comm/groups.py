"""Process groups as MindSpore knows them: a name and the global ranks, for MindSpore's own communication ops.

On Ascend each becomes an HCCL group (``mindspore.communication.create_group``), which is what fused operators
such as ``all_gather_matmul`` take as ``group=``. It is made when it is first asked for, as its buffers take
hundreds of megabytes of the device: Megatron makes dozens of groups and uses a few. On the CPU target nothing
computes with them, and a group is made only once MindSpore's communication is up (:func:`start_mindspore`).
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from mindspeed_ms import device
from torch.distributed import distributed_c10d as c10d


@dataclass
class MindSporeGroup:
    """``name`` is equal on all ranks of the group; ``ranks`` are global; ``created``: exists inside
    MindSpore."""

    name: str
    ranks: tuple[int, ...]
    created: bool = False


_STORE_KEY = "mindspeed_ms/mindspore_store"
_known: dict[str, MindSporeGroup] = {}
_lock = threading.Lock()
_kept_elsewhere: list[Callable[[], None]] = []


def _key(group: dist.ProcessGroup) -> tuple[str, tuple[int, ...]]:
    ranks = tuple(dist.get_process_group_ranks(group))
    label = group.group_desc if group.group_desc not in ("", "undefined") else "group"
    return f"{label}-{group.group_name}", ranks


def _know(group: dist.ProcessGroup | None) -> MindSporeGroup:
    group = group if group is not None else c10d._get_default_group()
    if group is dist.GroupMember.NON_GROUP_MEMBER or group not in c10d._world.pg_map:
        raise ValueError(
            "mindspore_group: this rank is not a member of the group, or the group was destroyed"
        )
    name, ranks = _key(group)
    with _lock:
        return _known.setdefault(name, MindSporeGroup(name, ranks))


def mindspore_group(group: dist.ProcessGroup | None = None) -> MindSporeGroup:
    """The MindSpore side of a torch process group (None: the default group), for who is about to use it.

    Where MindSpore's communication is up, the first call makes the group there: all its ranks must call, in
    the same order as for other groups.
    Raises ValueError for a group this rank is no member of, or that torch has destroyed.
    """
    entry = _know(group)
    with _lock:
        if not entry.created and mindspore_is_up():
            from mindspore import communication

            communication.create_group(entry.name, list(entry.ranks))
            entry.created = True
    return entry


def adopt(groups: Iterable[dist.ProcessGroup | None]) -> list[MindSporeGroup]:
    """Makes groups known by name and ranks, those that this rank is a member of, in the given order."""
    return [_know(g) for g in groups if g is not None and g in c10d._world.pg_map]


def adopt_all() -> list[MindSporeGroup]:
    """Every process group of this rank, in creation order (which is the same on all ranks)."""
    return adopt(list(c10d._world.pg_map))


def known() -> tuple[MindSporeGroup, ...]:
    """All groups that MindSpore's side knows."""
    return tuple(_known.values())


def at_release(forget: Callable[[], None]) -> Callable[[], None]:
    """Decorator: `forget` is called by :func:`release_all`, for what was kept of groups elsewhere."""
    _kept_elsewhere.append(forget)
    return forget


def release_all() -> None:
    """Destroys the MindSpore side of every group but the world's, and what others kept of groups."""
    for forget in _kept_elsewhere:
        forget()
    with _lock:
        for entry in _known.values():
            if entry.created and mindspore_is_up():
                from mindspore import communication

                communication.destroy_group(entry.name)
        _known.clear()


def mindspore_is_up() -> bool:
    """Whether MindSpore's communication was initialised in this process; never imports MindSpore."""
    management = sys.modules.get("mindspore.communication.management")
    return management is not None and bool(management.GlobalComm.INITED)


def start_with_default_group() -> None:
    """Initialises MindSpore's communication among the ranks of torch's default group; a collective call.

    Rank 0 serves MindSpore's store on a port of its own and tells the others where through torch's.
    Idempotent; one rank alone needs none.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    if mindspore_is_up() or world == 1:
        return
    from mindspore.mint.distributed import TCPStore

    torch_store = c10d._get_default_store()
    timeout = c10d._get_default_timeout(dist.Backend("mindspore"))
    if rank == 0:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        # MindSpore's store takes addresses only, torchrun says "localhost".
        host = socket.gethostbyname(os.environ.get("MASTER_ADDR", "127.0.0.1"))
        torch_store.set(_STORE_KEY, json.dumps([host, port]))
    host, port = json.loads(torch_store.get(_STORE_KEY))
    start_mindspore(TCPStore(host, port, world, rank == 0, timeout), rank, world, timeout)


def start_mindspore(store: dist.Store, rank: int, world: int, timeout: timedelta) -> None:
    """Initialises MindSpore's communication through a torch store: backend hccl on Ascend, mccl on CPU.

    ``store`` must be a TCPStore of MindSpore (``mindspore.mint.distributed.TCPStore``). Needs no scheduler.
    Starts the device: MindSpore refuses to choose one once its communication is up.
    """
    mindspore = device.mindspore.module()
    from mindspore.communication import management

    backend = "hccl" if mindspore.get_context("device_target") == "Ascend" else "mccl"
    management._init_with_store(
        backend=backend, timeout=timeout, world_size=world, rank=rank, store=store, group_name=""
    )
