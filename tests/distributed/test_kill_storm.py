"""A short storm of kills: the ranks that are left end, nothing stays behind, the checkpoints can be read."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.distributed
@pytest.mark.timeout(300)
def test_few_kills():
    storm = [sys.executable, "-m", "tests.benchmarks.kill_storm", "--quick", "--kills", "3"]
    done = subprocess.run(storm, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"[-6000:]
    assert "0 orphaned processes (measured: 0)" in done.stdout
