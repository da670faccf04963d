"""The build: its place, and that it is done once."""

import time
from pathlib import Path

import pytest

from . import branches, build


@pytest.mark.timeout(900)  # the first test of the session that needs the libraries compiles them
def test_the_libraries_are_built_once(cann_root: Path) -> None:
    libraries = {path.name for path in (cann_root / "lib64").iterdir()}
    assert {"libascendcl.so", "libopapi.so", "libhccl.so", "libgraph.so"} <= libraries
    start = time.monotonic()
    assert build.build() == cann_root
    assert time.monotonic() - start < 5


def test_nothing_before_the_root_is_called_cann(cann_root: Path) -> None:
    assert "cann" not in str(cann_root.parent)


def test_every_branch_on_target_ascend_has_a_test(capsys: pytest.CaptureFixture[str]) -> None:
    assert branches.main() == 0, capsys.readouterr().err
