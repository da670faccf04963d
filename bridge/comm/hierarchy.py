"""Groups whose ranks are on several hosts: shared memory inside each host, gloo between them.

all_reduce, broadcast, all_gather and barrier are hierarchical: each byte crosses between two hosts once,
carried
by one rank per host. The others pair every two ranks directly, over whichever of the two reaches the peer.
Reductions happen here, in the accumulate type, because gloo rounds 16-bit floats at every step.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from mindspeed_ms import _native
from mindspeed_ms.comm.engine import DTYPES, REDUCTIONS, Call, Handle, SharedMemoryEngine, connect, pieces
from mindspeed_ms.comm.roster import Member

_SUM, _AVG, _PREMUL_SUM = (REDUCTIONS[name] for name in ("SUM", "AVG", "PREMUL_SUM"))
_INTERNAL_TAG = -7
"""Tag of this engine's own messages in the point-to-point channels of the hosts' engines."""
_CODES = dict(_native.comm.FAILURES)
HISTORY = 256


class _FutureHandle:
    """Handle over a Python future whose failure is an exception."""

    def __init__(self, future: Future, what: str, source: int = -1) -> None:
        self._future, self._what, self.source = future, what, source

    @property
    def done(self) -> bool:
        return self._future.done()

    @property
    def failure(self) -> int:
        if not self._future.done() or self._future.exception() is None:
            return 0
        return _CODES["timeout"] if "imed out" in str(self._future.exception()) else _CODES["peer_lost"]

    @property
    def error(self) -> str:
        return f"{self._what} failed: {self._future.exception()}"

    def wait(self, timeout_s: float = -1.0) -> bool:
        try:
            self._future.exception(None if timeout_s < 0 else timeout_s)
        except TimeoutError:
            return False
        return True

    def __repr__(self) -> str:
        return self._what


class _WorkHandle:
    """Handle over one of gloo's works (a message to or from another host)."""

    def __init__(self, work: dist.Work, what: str, source: int) -> None:
        self._work, self._what, self.source = work, what, source
        self._failed: str | None = None

    @property
    def done(self) -> bool:
        return self._failed is not None or self._work.is_completed()

    @property
    def failure(self) -> int:
        return _CODES["peer_lost"] if self._failed is not None else 0

    @property
    def error(self) -> str:
        return f"{self._what} failed: {self._failed}"

    def wait(self, timeout_s: float = -1.0) -> bool:
        try:
            return self._work.wait() if timeout_s < 0 else self._work.wait(timedelta(seconds=timeout_s))
        except RuntimeError as error:
            self._failed = str(error)
            return True

    def __repr__(self) -> str:
        return self._what


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as flat bytes: gloo then moves any element type."""
    return tensor.view(-1).view(torch.uint8) if tensor.numel() else tensor.new_empty(0, dtype=torch.uint8)


class HierarchicalEngine:
    """Engine for ``members`` on several hosts; collectives run on one thread per group, in order."""

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        members: Sequence[Member],
        global_ranks: Sequence[int],
        group: str,
        timeout: timedelta,
    ) -> None:
        hosts: dict[str, list[int]] = {}
        for r, member in enumerate(members):
            hosts.setdefault(member.host, []).append(r)
        self._rank, self._size = rank, len(members)
        self._hosts = list(hosts.values())
        self._mine = hosts[members[rank].host]
        self._leaders = [ranks[0] for ranks in self._hosts]
        self._global_ranks, self._group = tuple(global_ranks), group
        host_store = dist.PrefixStore(f"host/{self._mine[0]}", store)
        self._local: SharedMemoryEngine = connect(
            host_store,
            self._mine.index(rank),
            [members[r] for r in self._mine],
            [global_ranks[r] for r in self._mine],
            group,
            timeout,
        )
        # Two gloo groups, so that a user's messages cannot meet the collectives' own.
        self._wire: Any = dist.ProcessGroupGloo(dist.PrefixStore("wire", store), rank, self._size, timeout)
        self._messages: Any = dist.ProcessGroupGloo(
            dist.PrefixStore("messages", store), rank, self._size, timeout
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"mindspeed_ms {group}")
        self._history: deque[dict[str, Any]] = deque(maxlen=HISTORY)
        self._sequence = 0
        self._lock = threading.Lock()

    # ---- Engine -----------------------------------------------------------------------------------------

    def start(self, call: Call) -> Handle:
        if call.kind in ("send", "recv"):
            return self._message(call)
        body: Callable[[Call], None] = getattr(self, f"_{call.kind}")
        with self._lock:
            what = self._describe(call, self._sequence)
            record = {"seq": self._sequence, "collective": call.kind, "description": what, "state": "queued"}
            record["created_s"] = time.monotonic()
            self._sequence += 1
            self._history.append(record)

            def run() -> None:
                record["started_s"], record["state"] = time.monotonic(), "started"
                try:
                    body(call)
                    record["state"] = "completed"
                except BaseException:
                    record["state"] = "failed"
                    raise
                finally:
                    record["finished_s"] = time.monotonic()

            return _FutureHandle(self._thread.submit(run), what)

    def history(self) -> list[dict[str, Any]]:
        return list(self._history)

    @property
    def sequence(self) -> int:
        return self._sequence

    def close(self, reason: str) -> None:
        self._local.close(reason)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _describe(self, call: Call, seq: int) -> str:
        first = next(iter([*call.sends, *call.recvs]), None)
        size = "" if first is None else f" ({first.dtype}, {first.numel()} elements)"
        return (
            f"{call.kind} #{seq}{size} on rank {self._global_ranks[self._rank]} of group '{self._group}' "
            f"(ranks {list(self._global_ranks)}, {len(self._hosts)} hosts)"
        )

    # ---- moving between two ranks -----------------------------------------------------------------------

    def _message(self, call: Call) -> Handle:
        """A user's send or receive."""
        tensor = (call.sends or call.recvs)[0]
        if call.root < 0:
            raise NotImplementedError("receiving from any source needs all ranks of the group on one host")
        if call.root in self._mine:
            local = Call(call.kind, call.sends, call.recvs, root=self._mine.index(call.root), tag=call.tag)
            local.timeout, local.foreground = call.timeout, call.foreground
            return self._local.start(local)
        move = self._messages.send if call.kind == "send" else self._messages.recv
        return _WorkHandle(move([_bytes(tensor)], call.root, call.tag), self._describe(call, -1), call.root)

    def _pair(self, kind: str, tensor: torch.Tensor, peer: int, timeout: float) -> Callable[[], None]:
        """Starts moving ``tensor`` to or from ``peer``; the result waits for it."""
        if peer in self._mine:
            sends, recvs = ([tensor], []) if kind == "send" else ([], [tensor])
            call = Call(kind, sends, recvs, root=self._mine.index(peer), tag=_INTERNAL_TAG, timeout=timeout)
            handle = self._local.start(call)

            def wait_local() -> None:
                handle.wait()
                if handle.failure:
                    raise RuntimeError(handle.error)

            return wait_local
        work = (self._wire.send if kind == "send" else self._wire.recv)([_bytes(tensor)], peer, 0)

        def wait_wire() -> None:
            work.wait(timedelta(seconds=timeout))

        return wait_wire

    def _exchange(
        self, sends: dict[int, torch.Tensor], recvs: dict[int, torch.Tensor], timeout: float
    ) -> None:
        """Sends and receives one tensor per peer, all at once; what goes to this rank itself is copied."""
        waits = [self._pair("recv", t, r, timeout) for r, t in recvs.items() if r != self._rank]
        waits += [self._pair("send", t, r, timeout) for r, t in sends.items() if r != self._rank]
        if self._rank in sends and self._rank in recvs and sends[self._rank] is not recvs[self._rank]:
            recvs[self._rank].copy_(sends[self._rank])
        for wait in waits:
            wait()

    def _inside(self, kind: str, timeout: float, **arguments: Any) -> None:
        """A collective among the ranks of this host."""
        handle = self._local.start(Call(kind, timeout=timeout, foreground=True, **arguments))
        if handle.failure:
            raise RuntimeError(handle.error)

    # ---- collectives ------------------------------------------------------------------------------------

    def _reduce_into(self, out: torch.Tensor, parts: Sequence[torch.Tensor], op: int, factor: float) -> None:
        addresses = [address for address, _ in pieces(parts)]
        _native.comm.reduce(DTYPES[out.dtype], op, addresses, out.data_ptr(), out.numel(), factor)

    def _all_reduce(self, call: Call) -> None:
        (source,), (target,) = call.sends, call.recvs
        wide = source.dtype in (torch.float16, torch.bfloat16)
        total = source.to(torch.float32) if wide else target.copy_(source) if target is not source else target
        inner = _SUM if call.op == _AVG else call.op
        self._inside(
            "reduce", call.timeout, sends=[total], recvs=[total], op=inner, factor=call.factor, root=0
        )
        if self._rank in self._leaders:
            outer = _SUM if call.op in (_AVG, _PREMUL_SUM) else call.op
            others = {r: torch.empty_like(total) for r in self._leaders if r != self._rank}
            self._exchange(dict.fromkeys(others, total), others, call.timeout)
            parts = [others.get(r, total) for r in self._leaders]  # the same order everywhere: the same bits
            self._reduce_into(total, parts, outer, 1.0)
        self._inside("broadcast", call.timeout, sends=[total], root=0)
        if call.op == _AVG:
            rounding = None if total.is_floating_point() else "trunc"
            total = total.div_(self._size, rounding_mode=rounding)
        if total is not target:
            target.copy_(total)

    def _barrier(self, call: Call) -> None:
        self._all_reduce(Call("all_reduce", [t := torch.zeros(1)], [t], _SUM, timeout=call.timeout))

    def _broadcast(self, call: Call) -> None:
        (tensor,) = call.sends
        # On the root's host the root itself speaks for the host.
        speaker = call.root if call.root in self._mine else self._mine[0]
        if self._rank == call.root:
            far = {r: tensor for r in self._leaders if r not in self._mine}
            self._exchange(far, {}, call.timeout)
        elif self._rank == speaker:
            self._exchange({}, {call.root: tensor}, call.timeout)
        self._inside("broadcast", call.timeout, sends=[tensor], root=self._mine.index(speaker))

    def _all_gather(self, call: Call) -> None:
        (source,), recvs = call.sends, call.recvs
        self._inside("all_gather", call.timeout, sends=[source], recvs=[recvs[r] for r in self._mine])
        if self._rank in self._leaders:
            waits = []
            for ranks in self._hosts:
                if ranks is self._mine:
                    continue
                waits += [self._pair("recv", recvs[r], ranks[0], call.timeout) for r in ranks]
                waits += [self._pair("send", recvs[r], ranks[0], call.timeout) for r in self._mine]
            for wait in waits:
                wait()
        for r in range(self._size):
            if r not in self._mine:
                self._inside("broadcast", call.timeout, sends=[recvs[r]], root=0)

    def _all_to_all(self, call: Call) -> None:
        self._exchange(dict(enumerate(call.sends)), dict(enumerate(call.recvs)), call.timeout)

    def _reduce_scatter(self, call: Call) -> None:
        (target,) = call.recvs
        parts = [
            torch.empty_like(target) if r != self._rank else call.sends[r].view_as(target)
            for r in range(self._size)
        ]
        arriving = {r: p for r, p in enumerate(parts) if r != self._rank}
        leaving = {r: t for r, t in enumerate(call.sends) if r != self._rank}
        self._exchange(leaving, arriving, call.timeout)
        self._reduce_into(target, parts, call.op, call.factor)

    def _reduce(self, call: Call) -> None:
        (source,), (target,) = call.sends, call.recvs
        if self._rank != call.root:
            self._exchange({call.root: source}, {}, call.timeout)
            return
        parts = [torch.empty_like(source) if r != self._rank else source for r in range(self._size)]
        self._exchange({}, {r: p for r, p in enumerate(parts) if r != self._rank}, call.timeout)
        self._reduce_into(target, parts, call.op, call.factor)

    def _gather(self, call: Call) -> None:
        arriving = dict(enumerate(call.recvs)) if self._rank == call.root else {}
        self._exchange({call.root: call.sends[0]}, arriving, call.timeout)

    def _scatter(self, call: Call) -> None:
        leaving = dict(enumerate(call.sends)) if self._rank == call.root else {}
        self._exchange(leaving, {call.root: call.recvs[0]}, call.timeout)
