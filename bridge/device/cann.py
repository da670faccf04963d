"""CANN, the software of an Ascend device: what of it is there, before MindSpore asks for it.

The runtime library is loaded, no device is opened: this is cheap, and works where MindSpore would not start.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VERSIONS = ("8.2", "8.3", "8.5", "9.0", "9.1")
"""Of CANN, for MindSpore 2.10 (mindspore/run_check/_check_version.py, AscendEnvChecker)."""


@dataclass(frozen=True)
class Part:
    """A part of the software.

    Attributes:
        found: what is there, one word or a version.
        problem: one sentence: what is wrong and what to do; empty where all is well.
        needed: whether nothing runs without it; else only what `problem` says.
    """

    name: str
    found: str
    problem: str = ""
    needed: bool = True


def device_count() -> int:
    """Cards that this process may use (ASCEND_RT_VISIBLE_DEVICES limits them); 0 where CANN cannot tell."""
    try:
        return _count_devices()[0]
    except OSError:
        return 0


@cache
def _count_devices() -> tuple[int, int]:
    """(cards, error code of the runtime). Raises OSError without CANN."""
    count = ctypes.c_uint32(0)
    code = ctypes.CDLL("libascendcl.so").aclrtGetDeviceCount(ctypes.byref(count))
    return (0 if code else count.value), code


def examine() -> Iterator[Part]:
    """The parts, what everything needs first."""
    yield from _toolkit()
    yield _driver()
    yield _library("HCCL", "libhccl.so", "ranks cannot communicate: install the whole CANN toolkit")
    yield _library(
        "NNAL",
        "libatb.so",
        "operators that add a product in place do without: install NNAL",
    )


def require() -> None:
    """Raises RuntimeError with the first problem of what nothing runs without."""
    for part in examine():
        if part.needed and part.problem:
            raise RuntimeError(f"Ascend: {part.problem}")


def _toolkit() -> Iterator[Part]:
    try:
        ctypes.CDLL("libascendcl.so")
    except OSError as error:
        advice = f"CANN is not there ({error}): install its toolkit and source its set_env.sh"
        yield Part("CANN", "none", advice)
        return
    home = os.environ.get("ASCEND_HOME_PATH", "")
    version = _version(Path(home))
    problem = ""
    if not home:
        problem = "ASCEND_HOME_PATH is not set: source set_env.sh of the CANN toolkit"
    elif version and ".".join(version.split(".")[:2]) not in VERSIONS:
        problem = f"CANN {version} does not fit MindSpore 2.10: install one of {', '.join(VERSIONS)}"
    yield Part("CANN", version or "unknown version", problem)


def _version(home: Path) -> str:
    file = home / "compiler/version.info"
    found = re.search(r"Version=(\S+)", file.read_text()) if file.is_file() else None
    return found[1] if found else ""


def _driver() -> Part:
    try:
        count, code = _count_devices()
    except OSError:
        return Part("cards", "none", "without CANN no card can be counted", needed=False)
    if count:
        return Part("cards", str(count))
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    seen = f" (ASCEND_RT_VISIBLE_DEVICES={visible})" if visible is not None else ""
    return Part(
        "cards",
        "none",
        f"no card is visible{seen}, aclrtGetDeviceCount answered {code}: does `npu-smi info` list one? "
        "Install the driver if there is no such command",
    )


def _library(name: str, file: str, without: str) -> Part:
    try:
        ctypes.CDLL(file)
    except OSError:
        return Part(name, "none", f"{file} cannot be loaded, so {without}", needed=False)
    return Part(name, file)
