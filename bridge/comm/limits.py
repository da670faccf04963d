"""What limits the exchange of tensors between ranks of one host.

Their memory is a memfd (csrc/comm/segment.cpp): it has no name in a file system, so neither the presence nor
the size of /dev/shm matters. What counts is that the kernel makes one, that other processes of this user may
open it, and that its pages fit into what the machine, or the control group of a container, has left.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from mindspeed_ms import _native
from mindspeed_ms.comm.engine import RING_SLOTS, chunk_bytes

_OPEN = "import os, sys; os.close(os.open(sys.argv[1], os.O_RDWR))"


def segment(ranks: int) -> _native.comm.Segment:
    """Memory as a group of `ranks` shares it. Raises OSError when the kernel does not give it."""
    return _native.comm.Segment.create(ranks, chunk_bytes(ranks), RING_SLOTS, "limits")


def can_be_opened(path: str) -> bool:
    """Whether another process of this user may open a descriptor of this one by its name below /proc."""
    command = [sys.executable, "-S", "-c", _OPEN, path]
    return subprocess.run(command, stderr=subprocess.DEVNULL, timeout=60).returncode == 0


def memory_left(root: Path = Path("/")) -> tuple[int, str]:
    """Bytes that this process can still touch, and who sets the limit: "machine" or "control group".

    `root`: where /proc and /sys are found.
    """
    available = _fields(root / "proc/meminfo")["MemAvailable:"] * 1024
    return min([(available, "machine"), *_groups(root)])


_VERSIONS = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Controllers of a line of /proc/self/cgroup (none: version 2) -> folder below /sys/fs/cgroup; files of the
limit and of the use; entry of memory.stat: what the use counts, but the kernel gives up when it is short."""


def _groups(root: Path) -> Iterator[tuple[int, str]]:
    """What each control group of this process, and each that encloses it, has left."""
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        known = _VERSIONS.keys() & set(controllers.split(","))
        if not known:
            continue
        name, limit, used, cache = _VERSIONS[known.pop()]
        top = root / "sys/fs/cgroup" / name
        group = top / path.strip("/")  # of the host; in a container the groups may begin with its own
        for folder in (group, *group.parents[: len(group.relative_to(top).parts)]):
            value = (folder / limit).read_text().strip() if (folder / limit).exists() else "max"
            if value != "max":
                held = int((folder / used).read_text()) - _fields(folder / "memory.stat")[cache]
                yield int(value) - held, "control group"


def _fields(file: Path) -> dict[str, int]:
    """First word of each line -> its number."""
    return {words[0]: int(words[1]) for words in map(str.split, file.read_text().splitlines())}
