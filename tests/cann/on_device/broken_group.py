"""A group of the selftest, of which some processes end or hang: see tests/cann/test_selftest.py."""

import os
import signal
import time
from collections.abc import Iterator

import torch
from mindspeed_ms.commands.selftest.rows import Case, Check


def _fits(check: Check) -> None:
    check.equal("one and one", torch.ones(1, device="npu") + 1, torch.full((1,), 2.0))


def _is_off(check: Check) -> None:
    check.close(
        "numbers", torch.tensor([[1.0, 2.0], [3.0, 4.5]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 1e-3
    )


def _raises(check: Check) -> None:
    raise RuntimeError("this operator\nis refused")


def cases(group: str) -> Iterator[Case]:
    yield Case("fits", _fits)
    yield Case("ends by a signal", lambda check: os.kill(os.getpid(), signal.SIGSEGV))
    yield Case("is off", _is_off)
    yield Case("hangs", lambda check: time.sleep(100))
    yield Case("raises", _raises)
    yield Case("fits after all", _fits)
