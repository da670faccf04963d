"""``torch.distributed.Work`` of this backend: waits, futures, and copying back into non-contiguous
outputs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from mindspeed_ms import _native
from mindspeed_ms.comm import errors
from mindspeed_ms.comm.engine import Handle

_FAILURE_TYPES = {code: errors.BY_NAME[name] for name, code in _native.comm.FAILURES.items() if code}


class CollectiveWork(dist.Work):
    """Work over one or several started calls.

    ``finish`` runs once, on the thread that first sees success (copies staged outputs back). ``result`` is
    what
    the future resolves to: the output tensors. ``on_failure(error)`` is told of a failure before it is
    raised.
    """

    def __init__(
        self,
        handles: Sequence[Handle],
        result: Any,
        finish: Callable[[], None] | None = None,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        super().__init__()
        self._handles = handles
        self._result = result
        self._finish = finish
        self._on_failure = on_failure
        self._error: errors.CollectiveError | None = None
        self._future: torch.futures.Future | None = None
        self._lock = threading.Lock()

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Blocks until done. Raises the collective's error, or CollectiveTimeoutError after ``timeout``."""
        limit = timeout.total_seconds() if timeout else -1.0
        for handle in self._handles:
            if not handle.done and not handle.wait(limit):
                raise errors.CollectiveTimeoutError(
                    f"wait() gave up after {limit:g} s; {handle!r} is still pending"
                )
        error = self._settle()
        if error is not None:
            raise error
        return True

    def synchronize(self) -> None:
        self.wait()

    def block_current_stream(self) -> None:
        self.wait()

    def is_completed(self) -> bool:
        done = all(handle.done for handle in self._handles)
        if done:
            self._settle()
        return done

    def is_success(self) -> bool:
        return self.is_completed() and self._error is None

    def exception(self) -> Exception | None:
        return self._error if self.is_completed() else None

    def result(self) -> Any:
        self.wait()
        return self._result

    def source_rank(self) -> int:
        """Group rank of the sender of a receive."""
        return self._handles[0].source

    _source_rank = source_rank

    def get_future(self) -> torch.futures.Future:
        """Future of the list of output tensors; fails with the collective's error."""
        with self._lock:
            if self._future is not None:
                return self._future
            self._future = torch.futures.Future()
        if self.is_completed():
            self._resolve()
        else:
            _completer.add(self)
        return self._future

    get_future_result = get_future

    def _resolve(self) -> None:
        assert self._future is not None
        if self._error is None:
            self._future.set_result(self._result)
        else:
            self._future.set_exception(self._error)

    def _settle(self) -> errors.CollectiveError | None:
        """After all handles are done: copies outputs back, once, or makes the error."""
        if self._error is None and self._finish is None and not any(h.failure for h in self._handles):
            return None
        with self._lock:
            if self._error is not None:
                return self._error
            failed = next((h for h in self._handles if h.failure), None)
            if failed is None:
                if self._finish is not None:
                    self._finish()
                    self._finish = None
                return None
            self._error = _FAILURE_TYPES[failed.failure](failed.error)
        if self._on_failure is not None:
            self._on_failure(self._error)
        return self._error


class _Completer:
    """Resolves futures that somebody asked for before their work was done. One daemon thread, started on
    demand."""

    def __init__(self) -> None:
        self._works: list[CollectiveWork] = []
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, work: CollectiveWork) -> None:
        with self._condition:
            self._works.append(work)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mindspeed_ms futures", daemon=True)
                self._thread.start()
            self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._works:
                    self._condition.wait()
                works = list(self._works)
            done = [work for work in works if work.is_completed()]
            for work in done:
                work._resolve()
            with self._condition:
                self._works = [work for work in self._works if work not in done]
            if not done:
                # Any of them may be next: wait briefly for the oldest, then look at all again.
                next((h for h in works[0]._handles if not h.done), works[0]._handles[0]).wait(0.002)


_completer = _Completer()
