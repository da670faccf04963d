"""A progress line: bytes done, of how many, and how fast."""

from __future__ import annotations

import sys
import time
from types import TracebackType

_EVERY = 0.2  # seconds between two lines drawn


class Progress:
    """Draws ``what`` on stderr while bytes are added, and the speed at the end; nothing unless ``show``."""

    def __init__(self, what: str, total: int, show: bool) -> None:
        self.what, self.total, self.show = what, total, show
        self.done = 0
        self.begin = self.drawn = time.perf_counter()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.show:
            self._draw("\n")

    def add(self, amount: int) -> None:
        """``amount`` more bytes are done."""
        self.done += amount
        if self.show and time.perf_counter() - self.drawn > _EVERY:
            self.drawn = time.perf_counter()
            self._draw("")

    def _draw(self, end: str) -> None:
        rate = self.done / max(time.perf_counter() - self.begin, 1e-9)
        share = 100 * self.done // max(self.total, 1)
        done, total, speed = (value / 1e9 for value in (self.done, self.total, rate))
        line = f"\r{self.what} {done:.2f} of {total:.2f} GB ({share} %), {speed:.2f} GB/s"
        print(line, end=end, file=sys.stderr, flush=True)
