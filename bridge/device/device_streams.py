"""Streams and events of an Ascend device: MindSpore's, behind the numbers by which torch knows streams."""

from __future__ import annotations

from typing import Any

from mindspeed_ms import _runtime

_made: dict[int, Any] = {}
"""Number -> ms.runtime.Stream; 0 is the default stream. torch never ends a stream either."""


def install() -> None:
    """Hands the hooks to the C++ runtime; MindSpore has started."""
    from mindspore import runtime

    _made[0] = runtime.default_stream()
    hooks = {
        "make": _make,
        "enter": lambda number: runtime.set_cur_stream(_made[number]),
        "query": lambda number: _made[number].query(),
        "synchronize": lambda number: _made[number].synchronize(),
        "record": _record,
        "wait": lambda event, number: None if event is None else event.wait(_made[number]),
        "event_query": lambda event: True if event is None else event.query(),
        "event_synchronize": lambda event: None if event is None else event.synchronize(),
        "elapsed": _elapsed,
    }
    _runtime.set_stream_hooks(hooks)


def _make(number: int, priority: int) -> None:
    from mindspore import runtime

    _made[number] = runtime.Stream(priority=priority)


def _record(event: Any, number: int, timing: bool) -> Any:
    from mindspore import runtime

    event = runtime.Event(enable_timing=timing) if event is None else event
    event.record(_made[number])
    return event


def _elapsed(start: Any, end: Any) -> float:
    end.synchronize()
    return start.elapsed_time(end)
