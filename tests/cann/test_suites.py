"""The package's own suites of views, devices and operators, on target Ascend.

With MindSpore's automatic copies switched off: an operator that gets a host tensor raises. So no number and
no index crosses the bus behind our counting.
"""

import pytest

SUITES = (
    "tests/conformance/test_aliasing.py",
    "tests/unit/test_device.py",
    "tests/unit/test_kernels_norm.py",
    "tests/unit/test_kernels_operators.py",
    "tests/unit/test_lowerings.py",
    "tests/unit/test_lowerings_rows.py",
)


@pytest.mark.parametrize("file", SUITES)
def test_suite(on_simulator, file: str) -> None:
    words = ("-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", file)
    done = on_simulator(*words, extra={"MS_DEV_DISABLE_AUTO_H2D": "1"}, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout


SAMPLED = r"add|softmax|index_select|fft\.ifft|exponential|native_batch_norm"


@pytest.mark.parametrize(
    "selection",
    [
        ("--ops", SAMPLED, "--samples", "2"),
        pytest.param((), marks=[pytest.mark.slow, pytest.mark.timeout(14400)]),
    ],
    ids=["sampled", "whole"],
)
def test_operator_database(on_simulator, selection: tuple[str, ...]) -> None:
    done = on_simulator("-m", "tests.conformance.opinfo", *selection, timeout=14000 if not selection else 280)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "route auto: 0 problems" in done.stdout
