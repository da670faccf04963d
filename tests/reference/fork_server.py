"""Runs scripts on plain torch in forks of a process that has imported Megatron: they start at once.

Reads one JSON job per line, {"script", "args", "stdout", "stderr"} with the last two naming files; answers
each with two lines: the process id at the start and the exit code at the end.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.reference import plain_torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def next_job() -> dict[str, Any] | None:
    """In a fork: its job. In the server: None, when there are no more jobs."""
    for line in sys.stdin:
        job = json.loads(line)
        process = os.fork()
        if process == 0:
            return job
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
    return None


def main() -> None:
    """Imports what the recipe needs, then serves."""
    plain_torch.install()
    sys.path.insert(0, str(EXAMPLES))
    import recipe.train  # noqa: F401 - to have it imported

    job = next_job()
    if job is None:
        return
    for name in ("stdout", "stderr"):
        file = os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, getattr(sys, name).fileno())
    # From here on the fork is a process like any other: it ends, and reports errors, as Python does.
    plain_torch.run_script(job["script"], job["args"])


if __name__ == "__main__":
    main()
