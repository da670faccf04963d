"""Start real processes for the tests of the command line."""

import os
import subprocess
import sys

OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "MINDSPEED_MS_COVERAGE")


def cli(*args: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    return launch(sys.executable, "-m", "mindspeed_ms", *args, timeout=timeout, **env)


def launch(*command: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in OURS}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env={**clean, **env})


def one_line(done: subprocess.CompletedProcess[str], status: int) -> str:
    assert done.returncode == status
    (line,) = done.stderr.strip().splitlines()
    return line
