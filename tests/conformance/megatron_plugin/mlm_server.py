"""Runs pytest in forks of a process that has imported torch, MindSpore and Megatron: files start at once.

Reads one JSON job per line, {"arguments", "environment", "log"}; answers, as JSON lines, {"process"} for each
job in order, and {"ended", "code"} when a fork is gone. Started in a Megatron-LM checkout, with the
environment that decides between bridge and plain torch, and a module to import first as only argument.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import sys
from typing import Any

PRELOADED = (
    *("megatron.core", "megatron.core.parallel_state", "megatron.core.models.gpt", "megatron.core.optimizer"),
    *("megatron.training.arguments", "megatron.training.checkpointing"),
)


def _say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def _reap() -> None:
    """Reports every fork that has ended."""
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            _say(ended=ended[0], code=os.waitstatus_to_exitcode(ended[1]))
    except ChildProcessError:
        return


def _next_job() -> dict[str, Any] | None:
    """In a fork: its job. In the server: None, when there are no more jobs."""
    buffer = b""
    while True:
        _reap()
        if not select.select([0], [], [], 0.1)[0]:
            continue
        chunk = os.read(0, 1 << 16)
        if not chunk:
            return None
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            process = os.fork()
            if process == 0:
                return json.loads(line)
            _say(process=process)


def main() -> None:
    """Imports, then serves."""
    sys.path.insert(0, os.getcwd())
    importlib.import_module(sys.argv[1])
    for module in PRELOADED:
        # Other releases name their modules otherwise; the tests then import what they need themselves.
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(module)
    import pytest

    job = _next_job()
    if job is None:
        return
    os.setsid()
    os.environ.update(job["environment"])
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    sys.argv = ["pytest", *job["arguments"]]
    sys.exit(pytest.main(job["arguments"]))


if __name__ == "__main__":
    main()
