"""Megatron's fusions on our kernels against Megatron's own code, in a process with the device on."""

import sys
from pathlib import Path

from processes import launch


def test_fusions_agree_with_megatrons_own_code():
    done = launch(sys.executable, str(Path(__file__).with_name("fusion_checks.py")), timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("all fusions agree")
