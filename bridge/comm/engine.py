"""What a process group asks of an engine, and the shared-memory engine for ranks of one host."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from mindspeed_ms import _native
from mindspeed_ms.comm import descriptors
from mindspeed_ms.comm.errors import PeerLostError
from mindspeed_ms.comm.roster import Member, wait_for_key
from mindspeed_ms.config import settings

KINDS: dict[str, int] = dict(_native.comm.KINDS)
DTYPES: dict[torch.dtype, int] = {getattr(torch, name): code for name, code in _native.comm.DTYPES.items()}
REDUCTIONS: dict[str, int] = dict(_native.comm.REDUCTIONS)
"""Names and numbers of ``c10d::ReduceOp::RedOpType``."""
NO_OP = REDUCTIONS["none"]
"""Code of "no reduction" (``c10d::ReduceOp::UNUSED``)."""

RING_SLOTS = 4
LINGER_SECONDS = 10.0
"""How long a process that ends waits in :func:`linger`."""


def chunk_bytes(world: int) -> int:
    """Payload of one slot: a few of them must stay in the L2 cache, and rings grow with the square of the
    ranks."""
    return 256 * 1024 if world <= 2 else 128 * 1024 if world <= 4 else 64 * 1024


@dataclass
class Call:
    """One collective or message. Tensors are contiguous and of an element type in :data:`DTYPES`.

    ``sends``/``recvs``: one tensor per peer where the collective has one per peer, else one. ``op`` is a
    ``ReduceOp.RedOpType`` number, ``root`` the group rank of root or peer (-1: any sender), timeout in
    seconds.
    """

    kind: str
    sends: Sequence[torch.Tensor] = ()
    recvs: Sequence[torch.Tensor] = ()
    op: int = NO_OP
    factor: float = 1.0
    root: int = -1
    tag: int = 0
    timeout: float = 1800.0
    foreground: bool = False


class Handle(Protocol):
    """A started call."""

    @property
    def done(self) -> bool: ...
    @property
    def failure(self) -> int:
        """0, or a code of ``_native.comm.FAILURES``; valid once done."""

    @property
    def error(self) -> str: ...
    @property
    def source(self) -> int: ...
    def wait(self, timeout_s: float = -1.0) -> bool: ...


class Engine(Protocol):
    """Moves bytes between the ranks of one group."""

    def start(self, call: Call) -> Handle: ...
    def history(self) -> list[dict[str, Any]]: ...
    def close(self, reason: str) -> None: ...
    @property
    def sequence(self) -> int: ...


def pieces(tensors: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """(address, elements) of each tensor. On the CPU target npu memory is host memory, so both devices do."""
    return [(t.data_ptr(), t.numel()) for t in tensors]


@dataclass
class SharedMemoryEngine:
    """Engine among ranks of one host: csrc/comm behind tensors. Build it with :func:`connect`."""

    native: Any
    members: Sequence[Member]
    release: Callable[[], None] | None  # what the segment's creator keeps until all have mapped it
    inflight: deque = field(default_factory=deque)

    def start(self, call: Call) -> Handle:
        first = call.sends[0] if call.sends else call.recvs[0] if call.recvs else None
        handle = self.native.submit(
            kind=KINDS[call.kind],
            dtype=0 if first is None else DTYPES[first.dtype],
            op=call.op,
            factor=call.factor,
            root=call.root,
            tag=call.tag,
            sends=pieces(call.sends),
            recvs=pieces(call.recvs),
            timeout_s=call.timeout,
            foreground=call.foreground,
        )
        if not call.foreground:
            # The progress thread reads and writes this memory even if the caller drops its Work object.
            inflight = self.inflight
            while inflight and inflight[0][0].done:
                inflight.popleft()
            inflight.append((handle, call))
        if self.release is not None and self.native.all_attached:
            self.release()
            self.native.release_descriptor()
            self.release = None
        return handle

    def history(self) -> list[dict[str, Any]]:
        return self.native.history()

    @property
    def sequence(self) -> int:
        return self.native.sequence

    def close(self, reason: str) -> None:
        self.native.close(reason)
        self.inflight.clear()
        if self.release is None:
            return
        if any(entry["state"] == "completed" for entry in self.native.history()):
            _unmapped.append(self)
        else:
            self.release()
            self.release = None

    def awaited(self) -> bool:
        """Whether a peer has yet to map the memory, all of them being alive."""
        return not self.native.all_attached and all(member.alive() for member in self.members)


_unmapped: list[SharedMemoryEngine] = []
"""Closed engines through which this rank has sent something to peers that have not mapped their memory."""


def linger() -> None:
    """Before this process ends: waits for peers that need memory of which it is the creator.

    The root of a broadcast, say, may be done, close its groups and end before the others come.
    """
    deadline = time.monotonic() + LINGER_SECONDS
    while any(engine.awaited() for engine in _unmapped) and time.monotonic() < deadline:
        time.sleep(0.002)


def connect(
    store: dist.Store,
    rank: int,
    members: Sequence[Member],
    global_ranks: Sequence[int],
    group: str,
    timeout: timedelta,
) -> SharedMemoryEngine:
    """Engine for the ranks ``members``, all on this host; ``rank`` indexes them. ``store`` is this group's
    alone.

    Whoever comes first creates the segment; its nonce travels through the store, so that no segment of
    another run can be taken for it. The memory has no name in any file system: nothing can be left behind.
    Raises PeerLostError when a rank dies before it arrived, CollectiveTimeoutError after ``timeout``.
    """
    native = _native.comm
    peers = [(g, m.pid, m.start_time) for g, m in zip(global_ranks, members, strict=True)]

    def check() -> None:
        for g, m in zip(global_ranks, members, strict=True):
            if not m.alive():
                raise PeerLostError(
                    f"rank {g} (pid {m.pid}) died before group '{group}' was connected (seen by rank "
                    f"{global_ranks[rank]})"
                )

    if store.add("shm/creator", 1) == 1:
        nonce = uuid.uuid4().hex
        segment = native.Segment.create(len(peers), chunk_bytes(len(peers)), RING_SLOTS, nonce)
        sender = descriptors.Sender(segment.descriptor, nonce) if settings.SEGMENT.value == "socket" else None
        store.set("shm/segment", json.dumps([None if sender else segment.path, nonce]))
        release = sender.close if sender else _nothing
        return SharedMemoryEngine(native.Engine(segment, rank, peers, group), members, release)
    where = wait_for_key(store, "shm/segment", timeout, f"the shared memory of group '{group}'", check)
    path, nonce = json.loads(where)
    try:
        segment = _open(path, nonce, timeout)
    except (RuntimeError, OSError) as error:
        check()
        raise PeerLostError(
            f"rank {global_ranks[rank]} cannot map the memory of group '{group}' ({error}): its creator has "
            "left already, or this kernel hides other processes' files (then set "
            f"{settings.SEGMENT.name}=socket)"
        ) from error
    return SharedMemoryEngine(native.Engine(segment, rank, peers, group), members, None)


def _nothing() -> None:
    """What the creator of a segment that others open below /proc has to end."""


def _open(path: str | None, nonce: str, timeout: timedelta) -> Any:
    """The segment of ``nonce``: at ``path``, or by the descriptor that its creator sends."""
    if path is not None:
        return _native.comm.Segment.open(path, nonce)
    descriptor = descriptors.receive(nonce, timeout.total_seconds())
    try:
        return _native.comm.Segment.open(f"/proc/self/fd/{descriptor}", nonce)
    finally:
        os.close(descriptor)
