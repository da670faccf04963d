"""One build of the simulated CANN for all tests of the session."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from . import build
from .run import REPOSITORY, environment

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def cann_root() -> Path:
    """CANN's root; the test is skipped, with the reason, where the simulator cannot be built."""
    try:
        return build.build()
    except build.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def on_simulator(cann_root: Path) -> Run:
    """Runs ``python *command`` on the simulator; options are those of :func:`tests.cann.run.environment`."""

    def run(*command: str, timeout: float = 200, extra: dict[str, str] | None = None, **options: object):
        env = {**environment(cann_root, **options), "OMP_NUM_THREADS": "1", **(extra or {})}
        env.setdefault("MINDSPEED_MS_AUTO_ROUTES", os.environ["MINDSPEED_MS_AUTO_ROUTES"])
        words = [sys.executable, *command]
        return subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=env, cwd=REPOSITORY)

    return run
