"""Group "versions": what the numbers of a report depend on, and what of it does not fit."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from mindspeed_ms.commands.selftest.rows import Case, Check, Skipped
from mindspeed_ms.config import versions
from mindspeed_ms.device import cann, mindspore

VERSION_FILES = {
    "driver": ("/usr/local/Ascend/driver/version.info", ""),
    "firmware": ("/usr/local/Ascend/firmware/version.info", ""),
    "NNAL": ("../version.info", "ATB_HOME_PATH"),
}
"""What is not in CANN's own folder -> its file, and the variable that names the folder it is in."""


def _file_version(name: str) -> str:
    file, variable = VERSION_FILES[name]
    path = Path(os.environ.get(variable, "/nowhere"), file) if variable else Path(file)
    found = (
        re.search(r"(?im)^(?:package_)?version\s*[=:]\s*(\S+)", path.read_text()) if path.is_file() else None
    )
    return found[1] if found else ""


def _package(item: versions.Check) -> Case:
    def run(check: Check) -> None:
        check.note = item.found or "not installed"
        check.require(not item.problem, item.problem)

    return Case(item.name, run)


def _part(part: cann.Part) -> Case:
    def run(check: Check) -> None:
        check.note = part.found
        if part.problem and not part.needed:
            raise Skipped(part.problem)
        check.require(not part.problem, part.problem)

    return Case(part.name, run)


def _version(name: str) -> Case:
    def run(check: Check) -> None:
        check.note = _file_version(name)
        if not check.note:
            raise Skipped(f"{name}: no version file")

    return Case(f"{name} version", run)


def _device(check: Check) -> None:
    properties = torch.cuda.get_device_properties(0)
    check.note = f"{properties.name}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    check.counts["memory_bytes"] = properties.total_memory
    check.require((torch.ones(2, device="npu") + 1).sum().item() == 4, "one and one are not two on it")


def cases(group: str) -> Iterator[Case]:
    """Packages; on Ascend the parts of CANN; the device, which computes a sum."""
    yield from map(_package, versions.examine())
    if mindspore.target() == "Ascend":
        yield from map(_part, cann.examine())
        yield from map(_version, VERSION_FILES)
    yield Case("device", _device)
