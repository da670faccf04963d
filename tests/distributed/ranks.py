"""Starts real ranks for a test: one spawned process each, joined by a TCPStore, never left behind."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist


class RankFailed(AssertionError):
    """A rank raised or died; the message holds its traceback."""


def free_store() -> dist.TCPStore:
    """Store served by this process, on a port that the system chose."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _main(
    target: Callable[..., Any], rank: int, world: int, port: int, results: Any, env: dict, args: tuple
) -> None:
    os.environ.update(env)
    torch.set_num_threads(1)
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        results.put((rank, None, target(rank, world, store, *args)))
    except BaseException:
        results.put((rank, traceback.format_exc(), None))
        raise


def start(
    target: Callable[..., Any], world: int, port: int, results: Any, *args: Any, env: dict | None = None
) -> list[BaseProcess]:
    """Starts ``target(rank, world, store, *args)`` in ``world`` processes."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_main, args=(target, rank, world, port, results, env or {}, args), daemon=True)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    return processes


def run(
    target: Callable[..., Any], world: int, *args: Any, timeout: float = 120, env: dict | None = None
) -> list[Any]:
    """Results of ``target(rank, world, store, *args)`` of every rank. Raises RankFailed, also after
    ``timeout``."""
    store = free_store()
    results = multiprocessing.get_context("spawn").Queue()
    processes = start(target, world, store.port, results, *args, env=env)
    outcome: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    try:
        while len(outcome) < world:
            if time.monotonic() > deadline:
                raise RankFailed(
                    f"ranks {sorted(set(range(world)) - set(outcome))} are not done after {timeout} s"
                )
            if results.empty():
                gone = [
                    r for r, p in enumerate(processes) if p.exitcode not in (None, 0) and r not in outcome
                ]
                if gone and results.empty():
                    time.sleep(0.2)  # its last message may still be on the way
                    if results.empty():
                        raise RankFailed(f"rank {gone[0]} died with exit code {processes[gone[0]].exitcode}")
                time.sleep(0.005)
                continue
            rank, error, value = results.get()
            if error is not None:
                raise RankFailed(f"rank {rank}:\n{error}")
            outcome[rank] = value
        return [outcome[r] for r in range(world)]
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def init(rank: int, world: int, store: dist.Store, seconds: float = 30) -> None:
    """Default group on this backend."""
    from mindspeed_ms import comm

    comm.register()
    dist.init_process_group(
        "mindspore", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=seconds)
    )
