"""Streams and events of device npu.

On the CPU target work runs in order on the calling thread: a stream is an identity, waiting is immediate, and
an event is a time stamp. On Ascend they are MindSpore's (:mod:`.device_streams`).
"""

from __future__ import annotations

import time
from typing import Any

import torch
from mindspeed_ms import _runtime


def device_index(device: Any = None) -> int:
    """Index of `device`: None (current), an int, or a name or torch.device of type npu or cuda.

    Raises:
        ValueError: another type of device.
    """
    if device is None:
        return _runtime.current_device()
    if isinstance(device, int):
        return _runtime.current_device() if device < 0 else device
    device = torch.device(device)
    if device.type not in ("npu", "cuda"):
        raise ValueError(f"Expected an npu or cuda device, but got {device}.")
    return _runtime.current_device() if device.index is None else device.index


class Stream(torch.Stream):
    """``torch.cuda.Stream`` for device npu."""

    def __new__(cls, device: Any = None, priority: int = 0, **kwargs: Any) -> Stream:
        if kwargs:  # stream_id/device_index/device_type: rebuilding a known stream
            return super().__new__(cls, **kwargs)
        return super().__new__(cls, torch.device("npu", device_index(device)), priority=priority)

    @property
    def cuda_stream(self) -> int:
        """Native handle; here the stream's number."""
        return self.stream_id

    npu_stream = cuda_stream

    def wait_event(self, event: torch.Event) -> None:
        event.wait(self)

    def wait_stream(self, stream: torch.Stream) -> None:
        """What this stream is given from now on waits for the work of the other; on the CPU target that is
        done."""
        if _runtime.opaque_memory():
            event = Event()
            event.record(stream)
            event.wait(self)

    def record_event(self, event: torch.Event | None = None) -> torch.Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    @staticmethod
    def priority_range() -> tuple[int, int]:
        return (0, -1)


class Event(torch.Event):
    """``torch.cuda.Event`` for device npu; ``elapsed_time`` in milliseconds."""

    def __new__(
        cls,
        enable_timing: bool = False,
        blocking: bool = False,
        interprocess: bool = False,
        external: bool = False,
        **_: Any,
    ) -> Event:
        return super().__new__(cls, "npu", enable_timing=enable_timing, blocking=blocking)

    def record(self, stream: torch.Stream | None = None) -> None:
        self._nanoseconds = time.perf_counter_ns()
        super().record(current_stream() if stream is None else stream)

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds from this event to `end_event`; torch's own refuses subclasses of torch.Event.

        Raises:
            RuntimeError: one of the two was not recorded.
        """
        if _runtime.opaque_memory():
            return _runtime.elapsed_milliseconds(self.event_id, end_event.event_id)
        try:
            return (end_event._nanoseconds - self._nanoseconds) * 1e-6
        except AttributeError:
            raise RuntimeError(
                "Both events must be recorded before their elapsed time is asked for."
            ) from None

    def wait(self, stream: torch.Stream | None = None) -> None:
        super().wait(current_stream() if stream is None else stream)


def current_stream(device: Any = None) -> Stream:
    return _wrap(torch._C._accelerator_getStream(device_index(device)))


def default_stream(device: Any = None) -> Stream:
    index = device_index(device)
    return Stream(stream_id=0, device_index=index, device_type=_PRIVATE_USE_1)


def set_stream(stream: torch.Stream | None) -> None:
    if stream is not None:
        torch._C._accelerator_setStream(stream)


_PRIVATE_USE_1 = 20  # c10::DeviceType::PrivateUse1


def _wrap(stream: torch.Stream) -> Stream:
    return Stream(
        stream_id=stream.stream_id, device_index=stream.device_index, device_type=stream.device_type
    )


class StreamContext:
    """``with torch.cuda.stream(s)``: makes `s` current and restores the previous stream."""

    def __init__(self, stream: torch.Stream | None) -> None:
        self.stream = stream
        self._previous: torch.Stream | None = None

    def __enter__(self) -> None:
        if self.stream is None:
            return
        self._previous = current_stream(self.stream.device_index)
        set_stream(self.stream)

    def __exit__(self, *_: Any) -> None:
        if self.stream is not None:
            set_stream(self._previous)


def stream(stream: torch.Stream | None) -> StreamContext:
    return StreamContext(stream)
