"""The command ``mindspeed-ms``, in processes of its own."""

import json
import sys

import pytest
from processes import cli, launch, one_line


def test_wrong_command_is_one_sentence():
    said = one_line(cli("tarin"), 2)
    assert "invalid choice: 'tarin'" in said
    assert "doctor" in said


def test_missing_script_is_one_sentence(tmp_path):
    assert "does not exist" in one_line(cli("run", "no_such.py", "--lr", "1"), 2)
    assert "is a folder" in one_line(cli("run", str(tmp_path)), 2)


def test_the_command_starts_without_torch():
    """`run` sets the threads of torch's OpenMP before torch loads, and --help is quick."""
    code = "import sys, mindspeed_ms.commands.cli; assert not {'torch', 'mindspore'} & set(sys.modules)"
    assert launch(sys.executable, "-c", code).stderr == ""


REPORT = {
    "rows": [
        {"op": "aten::mm", "dtype": "Float", "route": "mindspore", "why": "", "calls": 10, "seconds": 6.0},
        {"op": "kernel::norm", "dtype": "Float", "route": "csrc", "why": "", "calls": 4, "seconds": 2.5},
        {
            "op": "aten::sort",
            "dtype": "Long",
            "route": "host",
            "why": "dtype int64 has no mindspore kernel on CPU",
            "calls": 3,
            "seconds": 1.5,
        },
    ],
    "wall_seconds": 20.0,
    "versions": {"torch": "2.13.0"},
}


def test_coverage_of_a_known_report(tmp_path):
    path = tmp_path / "coverage.json"
    path.write_text(json.dumps(REPORT))
    for done in (cli("coverage", str(path)), cli("coverage", MINDSPEED_MS_COVERAGE=str(path))):
        assert done.returncode == 0, done.stderr
        assert "operator time on MindSpore + csrc: 85.0% (mindspore 60.0%, csrc 25.0%, " in done.stdout
        assert "composite 0.0%, host 15.0%)" in done.stdout
        assert "no mindspore kernel" not in done.stdout
        assert "left on other routes: aten::sort (Long) 15.0%" in done.stdout
        assert "in operators 50.0%" in done.stdout


def test_coverage_says_why(tmp_path):
    path = tmp_path / "coverage.json"
    path.write_text(json.dumps(REPORT))
    done = cli("coverage", "--why", str(path))
    row = next(line for line in done.stdout.splitlines() if line.startswith("aten::sort"))
    assert row.endswith("dtype int64 has no mindspore kernel on CPU")
    assert "first choice" in next(line for line in done.stdout.splitlines() if line.startswith("aten::mm"))


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    path = tmp_path / "coverage.json"
    path.write_text(json.dumps({**REPORT, "rows": REPORT["rows"] * 10000}))
    command = f"{sys.executable} -m mindspeed_ms coverage --all {path} | head -n 1"
    done = launch("bash", "-c", command)
    assert done.stdout.startswith("operator")
    assert done.stderr == ""


@pytest.mark.parametrize("text", ["", "[]", '{"rows": [{"op": 1}]}', '{"rows": 3}'])
def test_coverage_of_something_else_is_one_sentence(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    assert "is not a coverage report" in one_line(cli("coverage", str(path)), 2)


def test_coverage_without_a_file_is_one_sentence(tmp_path):
    assert "does not exist" in one_line(cli("coverage", str(tmp_path / "none.json")), 2)
    assert "MINDSPEED_MS_COVERAGE" in one_line(cli("coverage"), 2)


def test_patches_lists_each_target_with_its_state():
    done = cli("patches")
    assert done.returncode == 0, done.stdout + done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("megatron.core.jit:jit_fuser"))
    assert "applied" in row
    assert "torch.compile" in row
    assert "triton is lent to" in done.stdout


def test_patches_of_a_folder_that_is_no_checkout(tmp_path):
    assert "is no Megatron-LM checkout" in one_line(cli("patches", "--megatron-lm-path", str(tmp_path)), 2)


TRAINS_WITH_A_HELPER = """
import subprocess, sys
import mindspeed_ms.patch, torch
helper = subprocess.Popen([sys.executable, "-c", "import mindspeed_ms.patch; input()"], stdin=-1)
torch.ones(8, device="npu") * 2
"""


def test_a_process_that_outlives_the_run_keeps_its_report(tmp_path):
    """Checkpoint writers and workers inherit the variable, count nothing and end last."""
    path = tmp_path / "coverage.json"
    path.write_text("left by an earlier run")
    done = launch(sys.executable, "-c", TRAINS_WITH_A_HELPER, MINDSPEED_MS_COVERAGE=str(path))
    assert done.returncode == 0, done.stderr
    assert "aten::mul.Tensor" in {row["op"] for row in json.loads(path.read_text())["rows"]}


def test_coverage_of_a_run_without_operators_claims_nothing(tmp_path):
    path = tmp_path / "coverage.json"
    done = launch(sys.executable, "-c", "import mindspeed_ms.patch", MINDSPEED_MS_COVERAGE=str(path))
    assert done.returncode == 0, done.stderr
    shown = cli("coverage", str(path))
    assert shown.stdout.strip() == "no operator ran on device npu in that process"


@pytest.mark.parametrize("place", ["", "none/x.json"])
def test_a_report_that_cannot_be_written_is_said_at_the_start(tmp_path, place):
    code = "import mindspeed_ms.patch; print('started')"
    done = launch(sys.executable, "-c", code, MINDSPEED_MS_COVERAGE=str(tmp_path / place))
    assert done.returncode == 1
    assert done.stdout == ""
    assert "cannot be written; name a file in a folder that can be" in done.stderr.splitlines()[-1]
