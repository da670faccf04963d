"""Engine of a group of one rank: what it would receive is what it sends. Nothing is connected for it."""

from __future__ import annotations

from typing import Any

from mindspeed_ms.comm.engine import Call, Handle


class _Done:
    """Handle of a call that was complete when it was started."""

    done, failure, error = True, 0, ""

    def __init__(self, source: int) -> None:
        self.source = source

    def wait(self, timeout_s: float = -1.0) -> bool:
        return True


class SoloEngine:
    """Copies within the device, in the order of its stream."""

    def __init__(self) -> None:
        self.sequence = 0

    def start(self, call: Call) -> Handle:
        """Raises ValueError for a message to or from another rank, which there is none of."""
        if call.kind in ("send", "recv"):
            raise ValueError(f"{call.kind}: a group of one rank has no other to exchange messages with")
        self.sequence += 1
        for sent, received in zip(call.sends, call.recvs, strict=False):
            if received is not sent:
                received.copy_(sent)
            if call.factor != 1.0:
                received.mul_(call.factor)
        return _Done(call.root)

    def history(self) -> list[dict[str, Any]]:
        return []

    def close(self, reason: str) -> None:
        """There is nothing to close."""
