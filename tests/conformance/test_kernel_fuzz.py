"""A few random calls of each kernel; under AddressSanitizer when asked for (slow)."""

import subprocess
import sys

import pytest

from tests.conformance.kernel_fuzz_cases import CASES


def test_a_few_cases_of_each_kernel():
    command = [sys.executable, "-m", "tests.conformance.kernel_fuzz", "--cases", str(6 * len(CASES))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert " 0 failed" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
def test_under_address_sanitizer():
    module = "tests.conformance.kernel_fuzz"
    command = [sys.executable, "-m", "tests.conformance.sanitizer", module, "--cases", str(6 * len(CASES))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert " 0 failed" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    assert "AddressSanitizer" not in done.stderr
