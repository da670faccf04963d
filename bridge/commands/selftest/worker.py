"""One process of a group: ``python -m mindspeed_ms.commands.selftest.worker NAME MODULE FIRST ONLY FILE``.

Appends a line to FILE when a case begins and one when it is done: what a process that dies has found, and
where it died, is known.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import mindspeed_ms.patch  # noqa: F401 - the device
import torch
from mindspeed_ms.commands.selftest import groups
from mindspeed_ms.commands.selftest.rows import Case, judge
from mindspeed_ms.device import mindspore


def _usable() -> bool:
    """Whether the device still computes: after an error of a kernel it does not."""
    try:
        return (torch.ones(2, device="npu") + 1).sum().item() == 4
    except RuntimeError:  # the row of the case has said why
        return False


def main(name: str, module: str, first: int, only: str, file: Path) -> int:
    """Runs the cases of a group from number `first` on; returns the exit status."""
    cases: Iterator[Case] = import_module(module, __package__).cases(name)
    with file.open("a") as lines:

        def say(line: dict[str, Any]) -> None:
            lines.write(json.dumps(line) + "\n")
            lines.flush()

        for number, case in enumerate(cases):
            if number < first or only not in case.name:
                continue
            say({"began": number, "name": case.name})
            row, raised = judge(name, case)
            row.target = mindspore.target()
            say({"number": number, "row": row.as_dict()})
            # After an error ranks may be out of step.
            if raised and (os.environ["WORLD_SIZE"] != "1" or not _usable()):
                os._exit(groups.BROKEN)
    return 0


if __name__ == "__main__":
    _name, _module, _first, _only, _file = sys.argv[1:]
    sys.exit(main(_name, _module, int(_first), _only, Path(_file)))
