"""How a rank learns who it is: torchrun's variables or msrun's, and how many threads it may use."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

STORE_PORT_OFFSET = 1
"""msrun's scheduler listens on MS_SCHED_PORT itself; torch's store takes the next port."""


def adopt_msrun_environment(env: MutableMapping[str, str] = os.environ) -> bool:
    """Fills in torch's variables from msrun's, when only those are there. Returns whether it did.

    msrun starts every worker with MS_ROLE=MS_WORKER, MS_WORKER_NUM, MS_NODE_ID and RANK_ID (global rank),
    DEVICE_ID (local rank), MS_SCHED_HOST and MS_SCHED_PORT. It also runs the script once as scheduler
    (MS_ROLE=MS_SCHED): torch's store takes that part, so that process ends here, with status 0.
    Raises ValueError when msrun's variables contradict each other.
    """
    if "RANK" in env or "MS_WORKER_NUM" not in env:
        return False
    if env.get("MS_ROLE") == "MS_SCHED":
        raise SystemExit(0)
    world = int(env["MS_WORKER_NUM"])
    rank = env.get("RANK_ID", env.get("MS_NODE_ID"))
    if rank is None:
        raise ValueError(
            "msrun set MS_WORKER_NUM but neither MS_NODE_ID nor RANK_ID: this rank cannot know its number"
        )
    if not 0 <= int(rank) < world:
        raise ValueError(f"rank {rank} of MS_NODE_ID/RANK_ID is outside MS_WORKER_NUM={world}")
    local_world = int(env.get("LOCAL_WORLD_SIZE", world))
    adopted = {
        "RANK": rank,
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(local_world),
        "LOCAL_RANK": env.get("DEVICE_ID", str(int(rank) % local_world)),
        "MASTER_ADDR": env.get("MS_SCHED_HOST", "127.0.0.1"),
        "MASTER_PORT": str(int(env.get("MS_SCHED_PORT", "8118")) + STORE_PORT_OFFSET),
    }
    for name, value in adopted.items():
        env.setdefault(name, value)
    return True


def threads_per_rank(env: MutableMapping[str, str] = os.environ) -> int:
    """Threads that one rank should compute with: the cores it may use, shared among the ranks of this
    host."""
    cores = len(os.sched_getaffinity(0))
    local = int(env.get("LOCAL_WORLD_SIZE", env.get("MS_WORKER_NUM", "1")))
    return max(1, cores // max(1, local))


def set_threads(env: MutableMapping[str, str] = os.environ) -> int | None:
    """Sets OMP_NUM_THREADS to :func:`threads_per_rank` unless the user chose a value; call it before torch
    loads.

    The 1 that torchrun sets where nothing is set is not the user's choice. Returns the number set, or None.
    """
    if "OMP_NUM_THREADS" in env and not _set_by_torchrun(env):
        return None
    chosen = threads_per_rank(env)
    env["OMP_NUM_THREADS"] = str(chosen)
    return chosen


def _set_by_torchrun(env: MutableMapping[str, str]) -> bool:
    """Whether torchrun put OMP_NUM_THREADS there: the environment that it was started with has none then."""
    if "TORCHELASTIC_RUN_ID" not in env or env["OMP_NUM_THREADS"] != "1":
        return False
    try:
        initial = Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:  # another user's, or a launcher that has ended
        return False
    return not any(entry.startswith(b"OMP_NUM_THREADS=") for entry in initial.split(b"\0"))
