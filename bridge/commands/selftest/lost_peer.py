"""Group "lost peer": a rank leaves, and those that wait for it are told."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from mindspeed_ms.commands.selftest.rows import Case, Check


def _collective(check: Check) -> None:
    dist.init_process_group("nccl", timeout=timedelta(seconds=60))
    x = torch.ones(4, device="npu")
    dist.all_reduce(x)
    check.equal("sum of both ranks", x, torch.full((4,), 2.0))


def _alone(check: Check) -> None:
    if dist.get_rank() == 1:
        return
    time.sleep(1)  # by now the other is gone
    x, started = torch.ones(4, device="npu"), time.monotonic()
    try:
        dist.all_reduce(x)
        x.cpu()
    except RuntimeError as error:
        check.note = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    else:
        check.wrong.append(f"no error from a sum with a rank that is gone: it gave {x.tolist()}")
    check.counts["seconds_until_told"] = round(time.monotonic() - started, 1)


def cases(group: str) -> Iterator[Case]:
    """A sum with both; rank 1 leaves; a sum that cannot be."""
    yield Case("two ranks", _collective)
    yield Case("a lost peer is an error", _alone)
    os._exit(0)  # as a rank that is lost does; the other has a device that waits
