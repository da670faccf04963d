"""The package's own suites of views, devices and operators, on target Ascend."""

import pytest

SUITES = (
    "tests/conformance/test_aliasing.py",
    "tests/unit/test_device.py",
    "tests/unit/test_kernels_norm.py",
    "tests/unit/test_kernels_operators.py",
    "tests/unit/test_lowerings.py",
)


@pytest.mark.parametrize("file", SUITES)
def test_suite(on_simulator, file: str) -> None:
    done = on_simulator("-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", file, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
