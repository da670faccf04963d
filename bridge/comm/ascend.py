"""Engine on MindSpore's HCCL groups, for Ascend.

Its calls are checked against MindSpore's signatures by a test, and all_reduce is run through MindSpore's CPU
backend, which has no more of them; running the others needs the hardware.

HCCL matches collectives by order and streams, detects a lost peer by its own timeouts
(``HCCL_EXEC_TIMEOUT``), and reduces in the device's accumulate type.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from mindspeed_ms import _native
from mindspeed_ms.comm.engine import REDUCTIONS, Call, Handle

HCCL_REDUCTIONS = {
    REDUCTIONS["SUM"]: "sum",
    REDUCTIONS["PRODUCT"]: "prod",
    REDUCTIONS["MIN"]: "min",
    REDUCTIONS["MAX"]: "max",
}
"""RedOpType number -> MindSpore's name. AVG and PREMUL_SUM are scaled sums; HCCL has nothing bitwise."""

_AVG, _PREMUL_SUM = REDUCTIONS["AVG"], REDUCTIONS["PREMUL_SUM"]
HISTORY = 256


@dataclass(frozen=True)
class Issue:
    """One call of ``mindspore.mint.distributed``: function name and arguments."""

    function: str
    arguments: dict[str, Any]


def joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """One flat tensor over contiguous ``tensors`` that follow each other in memory; None if they do not.

    Collectives over it need no list of parts, which MindSpore would copy from and to such a tensor.
    """
    first = tensors[0]
    at = first.storage_offset()
    for tensor in tensors:
        if tensor.dtype != first.dtype or not _same_storage(tensor, first) or tensor.storage_offset() != at:
            return None
        at += tensor.numel()
    return first.as_strided((at - first.storage_offset(),), (1,))


def _same_storage(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata


def _issue_single(call: Call, op: str | None, lend: Callable[[torch.Tensor], Any]) -> Issue | None:
    """The MindSpore call that takes one tensor where ``call`` has one per rank, if those are joined."""
    if call.kind not in ("all_gather", "reduce_scatter", "all_to_all"):
        return None
    sent, received = joined(call.sends), joined(call.recvs)
    if sent is None or received is None:
        return None
    source, target = lend(sent), lend(received)
    match call.kind:
        case "all_gather":
            return Issue("all_gather_into_tensor", {"output_tensor": target, "input_tensor": source})
        case "reduce_scatter":
            return Issue("reduce_scatter_tensor", {"output": target, "input": source, "op": op})
    splits = {
        "output_split_sizes": [t.numel() for t in call.recvs],
        "input_split_sizes": [t.numel() for t in call.sends],
    }
    return Issue("all_to_all_single", {"output": target, "input": source, **splits})


def issue(call: Call, group: str, ranks: Sequence[int], lend: Callable[[torch.Tensor], Any]) -> Issue:
    """The MindSpore call for ``call``. ``lend``: torch tensor -> MindSpore tensor over the same memory.

    Roots and peers become global ranks, as mint.distributed wants them but in `reduce`.
    Raises TypeError for a reduction that HCCL has not, ValueError for a receive from any source.
    """
    common = {"group": group, "async_op": True}
    op = HCCL_REDUCTIONS.get(REDUCTIONS["SUM"] if call.op in (_AVG, _PREMUL_SUM) else call.op)
    peer = ranks[call.root] if call.root >= 0 else None
    if call.kind in ("all_reduce", "reduce", "reduce_scatter") and op is None:
        raise TypeError(
            f"HCCL has no reduction number {call.op} (c10d::ReduceOp); use SUM, AVG, MAX, MIN or PRODUCT"
        )
    if (single := _issue_single(call, op, lend)) is not None:
        return Issue(single.function, {**single.arguments, **common})
    sends, recvs = [lend(t) for t in call.sends], [lend(t) for t in call.recvs]
    match call.kind:
        case "all_reduce":
            return Issue("all_reduce", {"tensor": recvs[0], "op": op, **common})
        case "reduce":  # MindSpore 2.10 hands this one rank to HCCL as it is: it is the group's
            return Issue("reduce", {"tensor": recvs[0], "dst": call.root, "op": op, **common})
        case "broadcast":
            return Issue("broadcast", {"tensor": sends[0], "src": peer, **common})
        case "all_gather":
            return Issue("all_gather", {"tensor_list": recvs, "tensor": sends[0], **common})
        case "reduce_scatter":
            return Issue("reduce_scatter", {"output": recvs[0], "input_list": sends, "op": op, **common})
        case "all_to_all":
            return Issue("all_to_all", {"output_tensor_list": recvs, "input_tensor_list": sends, **common})
        case "gather":
            return Issue("gather", {"tensor": sends[0], "gather_list": recvs, "dst": peer, **common})
        case "scatter":
            return Issue("scatter", {"tensor": recvs[0], "scatter_list": sends, "src": peer, **common})
        case "barrier":
            return Issue("barrier", common)
        case "send":
            return Issue("isend", {"tensor": sends[0], "dst": peer, "group": group, "tag": call.tag})
        case "recv" if peer is None:
            raise ValueError("HCCL cannot receive from any source: name the sending rank")
        case "recv":
            return Issue("irecv", {"tensor": recvs[0], "src": peer, "group": group, "tag": call.tag})
    raise ValueError(f"unknown collective {call.kind!r}")


class _CommHandle:
    """Handle over MindSpore's CommHandle, whose wait() has the current stream wait, not the host.

    Whether the call is complete is seen by an event on a stream that waits for it and has nothing else to do;
    both are made when somebody asks.
    """

    def __init__(self, handle: Any, what: str, source: int, finish: Callable[[], None] | None = None) -> None:
        self._handle, self._what, self.source, self._finish = handle, what, source, finish
        self._event: Any = None
        self._waited = handle is None
        self.failure, self.error = 0, ""

    @property
    def done(self) -> bool:
        """Whether the device has done the call, and the stream that asked has been told to wait for it."""
        if self._waited:
            return True
        if not self._complete():
            return False
        self._order()
        return True

    def wait(self, timeout_s: float = -1.0) -> bool:
        """Orders the current stream after the call; with a time limit the host waits, False when it is
        over."""
        if timeout_s >= 0:
            deadline = time.monotonic() + timeout_s
            while not self._complete():
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.0002)
        self._order()
        return True

    def _complete(self) -> bool:
        if self._waited:
            return True
        if self._event is None:
            from mindspore import runtime

            watching = runtime.Stream()
            with runtime.StreamCtx(watching):
                self._handle.wait()
                self._event = runtime.Event()
                self._event.record(watching)
        return self._event.query()

    def _order(self) -> None:
        if self._waited:
            return
        try:
            self._handle.wait()
            if self._finish is not None:
                self._finish()
        except RuntimeError as error:
            self.failure = _native.comm.FAILURES["peer_lost"]
            self.error = f"{self._what} failed: {error}"
        self._waited = True

    def __repr__(self) -> str:
        return self._what


class AscendEngine:
    """Engine over one HCCL group, made before (:func:`mindspeed_ms.comm.mindspore_group`).

    ``distributed``: the module ``mindspore.mint.distributed``; ``lend``: see :func:`issue`.
    """

    def __init__(
        self, group: str, ranks: Sequence[int], distributed: ModuleType, lend: Callable[[torch.Tensor], Any]
    ) -> None:
        self._group, self._ranks, self._distributed = group, tuple(ranks), distributed
        # MindSpore 2.10 looks for a first dimension (its scatter ends the process without one).
        self._lend = lambda tensor: lend(tensor if tensor.dim() else tensor.view(1))
        self._history: deque[dict[str, Any]] = deque(maxlen=HISTORY)
        self.sequence = 0

    def start(self, call: Call) -> Handle:
        factor = 1 / len(self._ranks) if call.op == _AVG else call.factor
        if call.op == _PREMUL_SUM:
            call.sends = [tensor * factor for tensor in call.sends]
        if call.kind in ("all_reduce", "reduce") and call.sends[0] is not call.recvs[0]:
            call.recvs[0].copy_(call.sends[0])
        made = issue(call, self._group, self._ranks, self._lend)
        what = self._record(call.kind)
        handle = getattr(self._distributed, made.function)(**made.arguments)

        def average() -> None:
            call.recvs[0].mul_(factor)

        return _CommHandle(handle, what, call.root, average if call.op == _AVG else None)

    def start_batch(self, calls: Sequence[Call]) -> Handle:
        """Sends and receives as one call: each alone would wait for its peer, who may be sending as well."""
        module = self._distributed
        operations = []
        for call in calls:
            if call.root < 0:
                raise ValueError("HCCL cannot receive from any source: name the sending rank")
            tensor = (call.sends or call.recvs)[0]
            name = "isend" if call.kind == "send" else "irecv"
            operations.append(module.P2POp(name, self._lend(tensor), self._ranks[call.root], self._group))
        what = self._record("+".join(call.kind for call in calls))
        (handle,) = module.batch_isend_irecv(operations)
        return _CommHandle(handle, what, calls[0].root)

    def _record(self, kind: str) -> str:
        what = f"{kind} #{self.sequence} of group '{self._group}' (ranks {list(self._ranks)})"
        self._history.append(
            {
                "seq": self.sequence,
                "collective": kind,
                "description": what,
                "state": "started",
                "created_s": time.monotonic(),
            }
        )
        self.sequence += 1
        return what

    def history(self) -> list[dict[str, Any]]:
        return list(self._history)

    def close(self, reason: str) -> None:
        """HCCL groups end with :func:`mindspeed_ms.comm.groups.release_all`."""
