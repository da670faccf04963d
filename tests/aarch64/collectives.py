"""One of two ranks: every collective of `_native.comm` in shared memory, against what both ranks hold.

``python -m tests.aarch64.collectives RANK FOLDER``, once for each rank, with an empty folder in common.
Prints a line of JSON for each result, as kernels.py does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .storage import DTYPES, LIMITS, Array, error, narrow, native, wide

COMM = native.comm
Arrays = Sequence[Array]
#: Elements: fewer than a slot of the ring has, and several slots with a rest.
SIZES = (1000, 200_001)
REDUCTIONS: dict[str, Callable[[Array, Array], Array]] = {
    "SUM": np.add,
    "AVG": lambda a, b: (a + b) / 2,
    "PRODUCT": np.multiply,
    "MIN": np.minimum,
    "MAX": np.maximum,
}


def exchange(folder: Path, name: str, value: object) -> Any:
    """The other rank's value of `name`; `value` becomes this rank's."""
    rank = int(sys.argv[1])
    mine, other = (folder / f"{name}{r}" for r in (rank, 1 - rank))
    mine.with_suffix(".new").write_text(json.dumps(value))
    mine.with_suffix(".new").rename(mine)
    end = time.monotonic() + 300
    while not other.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"rank {1 - rank} did not come")
        time.sleep(0.05)
    return json.loads(other.read_text())


def join(rank: int, folder: Path) -> Any:
    """The engine of this rank."""
    other = exchange(folder, "process", os.getpid())
    segment = COMM.Segment.create(2, 256 * 1024, 4, "nonce") if rank == 0 else None
    path = exchange(folder, "segment", segment and segment.path)
    if segment is None:
        segment = COMM.Segment.open(path, "nonce")
    # The start time as this rank sees it: qemu shows a process another one for itself than others see.
    pids = [os.getpid() if r == rank else other for r in range(2)]
    peers = [(r, pid, COMM.process_start_time(pid)) for r, pid in enumerate(pids)]
    return COMM.Engine(segment, rank, peers, "test")


class Rank:
    """What one rank sends and checks in one storage type and size."""

    def __init__(self, engine: Any, rank: int, dtype: str, size: int) -> None:
        self.engine, self.rank, self.dtype, self.size = engine, rank, dtype, size
        random = np.random.default_rng(size)
        # What each rank has for each: both know all of it.
        self.held = narrow(random.standard_normal((2, 2, size)), dtype)
        self.exact = wide(self.held)

    def run(
        self, kind: str, sends: Arrays = (), recvs: Arrays = (), op: str = "none", root: int = -1
    ) -> None:
        lists = [[(x.ctypes.data, x.size) for x in xs] for xs in (sends, recvs)]
        codes = (COMM.KINDS[kind], COMM.DTYPES[self.dtype], COMM.REDUCTIONS[op])
        handle = self.engine.submit(*codes, 1.0, root, 7, *lists, 120.0, False)
        if not handle.wait(150.0) or handle.error:
            raise RuntimeError(f"{kind}: {handle.error or 'it does not end'}")

    def check(self, what: str, got: Array, exact: Array) -> None:
        line = {"dtype": self.dtype, "what": f"{what} of {self.size} on rank {self.rank}"}
        print(json.dumps({**line, "error": error(wide(got), exact), "limit": LIMITS[self.dtype]}))

    def reductions(self) -> None:
        r, first = self.rank, self.exact[:, 0]
        for op, function in REDUCTIONS.items():
            x = self.held[r, 0].copy()
            self.run("all_reduce", [x], [x], op)
            self.check(f"all_reduce {op}", x, function(first[0], first[1]))
        x = self.held[r, 0].copy()
        self.run("reduce", [x], [x], "SUM", root=1)
        if r == 1:
            self.check("reduce", x, first.sum(0))
        y = np.zeros_like(x)
        self.run("reduce_scatter", list(self.held[r]), [y], "SUM")
        self.check("reduce_scatter", y, self.exact[:, r].sum(0))

    def moves(self) -> None:
        r, held, exact = self.rank, self.held, self.exact
        x = held[r, 0].copy()
        self.run("broadcast", [x], [x], root=1)
        self.check("broadcast", x, exact[1, 0])
        both = np.zeros_like(held[0])
        self.run("all_gather", [held[r, 1]], list(both))
        self.check("all_gather", both, exact[:, 1])
        both[:] = 0
        self.run("all_to_all", list(held[r]), list(both))
        self.check("all_to_all", both, exact[:, r])
        both[:] = 0
        self.run("gather", [held[r, 0]], list(both) if r == 0 else [], root=0)
        if r == 0:
            self.check("gather", both, exact[:, 0])
        y = np.zeros_like(x)
        self.run("scatter", list(held[1]) if r == 1 else [], [y], root=1)
        self.check("scatter", y, exact[1, r])
        y[:] = 0
        if r == 0:
            self.run("send", [held[0, 1]], root=1)
        else:
            self.run("recv", [], [y], root=0)
            self.check("send and recv", y, exact[0, 1])
        self.run("barrier")


def main(rank: int, folder: Path) -> int:
    engine = join(rank, folder)
    for dtype in DTYPES:
        for size in SIZES:
            one = Rank(engine, rank, dtype, size)
            one.reductions()
            one.moves()
    exchange(folder, "end", True)
    engine.close("the test has ended")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
