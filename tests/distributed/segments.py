"""Which processes hold shared-memory segments of this product.

A segment is a memfd (csrc/comm/segment.cpp): it has no name in any file system, and lives as long as a
process has it open or mapped. What a dead rank left behind is therefore what surviving processes still hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

NAME = "/memfd:mindspeed_ms (deleted)"
"""How /proc shows it."""


def processes() -> list[int]:
    """Ids of all processes of this machine, as far as /proc shows them."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def parent(process: int) -> int:
    """Id of the parent. Raises OSError when the process is gone."""
    # The name before it is in parentheses and may hold anything.
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def descendants(ancestor: int) -> list[int]:
    """Processes that descend from `ancestor`, zombies and those with a session of their own included."""
    parents = {}
    for process in processes():
        try:
            parents[process] = parent(process)
        except OSError:  # ended meanwhile
            continue
    found, generation = [], {ancestor}
    while generation := {child for child, its in parents.items() if its in generation}:
        found += generation
    return sorted(found)


def held(among: Iterable[int] | None = None) -> dict[int, set[int]]:
    """Inode of a segment -> processes that have it open or mapped.

    `among`: the processes that are asked, by default all whose files this user may see.
    """
    found: dict[int, set[int]] = {}
    for process in processes() if among is None else among:
        for inode in _open(process) | _mapped(process):
            found.setdefault(inode, set()).add(process)
    return found


def _open(process: int) -> set[int]:
    inodes = set()
    try:
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            if os.readlink(descriptor) == NAME:
                inodes.add(descriptor.stat().st_ino)
    except OSError:  # ended, closed it, or belongs to another user
        pass
    return inodes


def _mapped(process: int) -> set[int]:
    try:
        lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    except OSError:  # ended, or belongs to another user
        return set()
    # address, permissions, offset, device, inode, name
    return {int(fields[4]) for fields in (line.split(maxsplit=5) for line in lines) if fields[5:] == [NAME]}
