"""The runner of Megatron's unit tests: what it counts when tests fail, crash and hang."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conformance.megatron_causes import EXCUSES, cause, excuse_of
from tests.conformance.megatron_runs import Outcome, Server, run_file
from tests.conformance.megatron_unit_tests import (
    by_cause,
    column,
    commit,
    count,
    failures_document,
    unused_excuses,
)

RECORD = Path(__file__).with_name("MEGATRON_UNIT_TESTS.md")
FILE = "tests/unit_tests/test_sample.py"
SAMPLE = """
import os
import signal
import time

import pytest


def test_passes():
    assert os.environ["WORLD_SIZE"] == "1"


def test_fails():
    raise RuntimeError("world_size (1) is not divisible by 4")


def test_crashes():
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.skip(reason="not today")
def test_skips():
    pass


def test_hangs():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(60)


def test_is_slow():
    time.sleep(60)


def test_runs_after_all_that():
    raise ValueError("value 17 at 0xdeadbeef")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root: Path = tmp_path_factory.mktemp("checkout")
    for folder in (root / "tests", root / "tests/unit_tests"):
        folder.mkdir()
        (folder / "__init__.py").touch()
    (root / FILE).write_text(SAMPLE)
    with pytest.MonkeyPatch.context() as patch, Server(root, "plain", 1) as server:
        patch.setattr("tests.conformance.megatron_runs.GRACE_SECONDS", 2)
        return run_file(server, FILE, limit=2)


def test_each_test_has_its_outcome(run):
    assert {name: outcome.outcome for name, outcome in run.tests.items()} == {
        "test_passes": "passed",
        "test_fails": "failed",
        "test_crashes": "crash",
        "test_skips": "skipped",
        "test_hangs": "timeout",
        "test_is_slow": "timeout",
        "test_runs_after_all_that": "failed",
    }
    assert run.lost == 2
    assert run.tests["test_crashes"].message == "the process ended with SIGSEGV"
    assert run.tests["test_skips"].message.endswith("not today")


def test_failures_are_counted_by_cause(run):
    runs = {FILE: run}
    assert count(runs) == {"passed": 1, "skipped": 1, "not applicable": 1, "failed": 4}
    causes = dict(by_cause(runs, "failed"))
    assert [name for _, name, _ in causes["ValueError: value N at 0x…"]] == ["test_runs_after_all_that"]
    assert list(dict(by_cause(runs, "not applicable"))) == ["the test needs more ranks than the run has"]


def test_the_document_names_the_commit_of_each_file(run):
    old, new = replace(run, commit="1234abc"), replace(run, commit=commit())
    text = failures_document({("bridge", 1): {"a": old, "b": new, "c": new}}, "sample")
    assert f"Commits, bridge, 1 rank(s): {commit()} (2 files), 1234abc (1 files)." in text


def test_causes():
    assert cause(Outcome("failed", "OSError: /a/b/c.txt 12")) == "OSError: …/c.txt N"
    assert excuse_of("f", "RuntimeError: boom") is None
    assert column("f", "t", Outcome("crash", "the process ended with SIGSEGV")) == "failed"


def test_unused_excuses_are_found(run):
    unused = unused_excuses([{FILE: run}])
    assert len(unused) == len(EXCUSES) - 1
    assert "world.size" not in "".join(excuse.message for excuse in unused)


def test_each_excuse_was_used_in_the_recorded_run():
    record = RECORD.read_text()
    assert [excuse.reason for excuse in EXCUSES if f"| {excuse.reason} |" not in record] == []


def test_what_an_excuse_calls_missing_is_missing():
    """With the stand-ins on: what they provide is no excuse."""
    names = sorted({excuse.missing for excuse in EXCUSES} - {""})
    find = "import sys, importlib.util, mindspeed_ms.patch\n"
    find += "print([name for name in sys.argv[1:] if importlib.util.find_spec(name)])"
    done = subprocess.run([sys.executable, "-c", find, *names, "mamba_ssm"], capture_output=True, text=True)
    assert done.stdout.strip() == "['mamba_ssm']", done.stdout + done.stderr
