"""``mindspeed-ms selftest`` on the simulated CANN: rows pass, each deliberate mistake has one."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mindspeed_ms.commands.selftest import compare, groups

from .run import REPOSITORY, environment

Report = dict[str, Any]

FAULTS = {
    "mask_sign": ("rules", "a causal mask hides later keys, and only those"),
    "stale_view": ("rules", "a write into a view reaches the tensor behind it"),
    "dropped_bias_gradient": ("rules", "the gradient of a bias is the sum over rows"),
    "fp16_overflow": ("rules", "products and sums of 16-bit numbers are summed in float32"),
    "swapped_ranks": ("collectives", "ranks stand where they belong"),
}
"""Deliberate mistake of the simulator -> the group and the row that name it."""


def selftest(root: Path, folder: Path, *words: str, **options: object) -> tuple[int, Report, str]:
    """Exit status, report and output of the command on two simulated cards."""
    file = folder / "report.json"
    env = {**environment(root, devices=2, **options), "OMP_NUM_THREADS": "1"}
    env["MINDSPEED_MS_AUTO_ROUTES"] = os.environ["MINDSPEED_MS_AUTO_ROUTES"]
    command = [sys.executable, "-m", "mindspeed_ms", "selftest", "--output", str(file), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=REPOSITORY, timeout=1200)
    assert file.exists(), done.stderr[-2000:]
    return done.returncode, json.loads(file.read_text()), done.stdout


def failing(report: Report) -> dict[str, str]:
    return {row["name"]: row["detail"] for row in report["rows"] if row["status"] == "fail"}


@pytest.fixture(scope="module")
def clean(cann_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a device without a fault, of the groups that take seconds."""
    folder = tmp_path_factory.mktemp("clean")
    words = ("--groups", "versions", "memory", "rules", "lost peer")
    status, report, output = selftest(cann_root, folder, *words)
    assert (status, failing(report)) == (0, {}), output
    assert report["target"] == "Ascend"
    assert {row["group"] for row in report["rows"]} == set(words[1:])
    assert any(row["name"] == "device" and "Ascend910B2" in row["detail"] for row in report["rows"])
    assert any("rank 1 is gone" in row["detail"] for row in report["rows"])
    return folder / "report.json"


@pytest.mark.distributed
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_the_row_that_names_it(
    cann_root: Path, tmp_path: Path, clean: Path, fault: str
) -> None:
    group, name = FAULTS[fault]
    # One call of two ranks that swap places says it; all the others would take a minute to say so too.
    words = ("--groups", group, *(("--only", name) if group == "collectives" else ("--compare", str(clean))))
    status, report, output = selftest(cann_root, tmp_path, *words, fault=fault)
    assert status == 1
    wrong = failing(report)
    assert "found" in wrong[name]
    assert "expected" in wrong[name]
    if group == "rules":
        assert f"rules: {name}: pass there, fail here" in output
        assert len(wrong) < 4, "most of the rules do not depend on it"


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(1500)
def test_every_row_passes(cann_root: Path, tmp_path: Path) -> None:
    status, report, output = selftest(cann_root, tmp_path)
    assert (status, failing(report)) == (0, {}), output
    assert {row["group"] for row in report["rows"]} == {group.name for group in groups.GROUPS}
    skipped = {row["name"] for row in report["rows"] if row["status"] == "skip"}
    assert skipped == {"NNAL", "driver version", "firmware version", "NNAL version"}, "the simulator has none"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("fault", "words", "row"),
    [
        ("mask_sign", ("kernels", "--only", "attention"), "attention 0 bfloat16"),
        ("dropped_bias_gradient", ("kernels", "--only", "norm"), "layer_norm 0 float16"),
        ("mask_sign", ("training", "--only", "dense"), "dense bfloat16"),
        ("dropped_bias_gradient", ("training", "--only", "dense"), "dense float32"),
    ],
)
def test_the_tables_and_the_curves_see_the_faults_too(cann_root, tmp_path, fault, words, row) -> None:
    _, report, output = selftest(cann_root, tmp_path, "--groups", *words, fault=fault)
    assert row in failing(report), output


def test_a_process_that_ends_or_hangs_is_a_row_and_the_rest_goes_on() -> None:
    group = groups.Group("broken", "tests.cann.on_device.broken_group", "", silence=15)
    rows = list(groups.run(group, "", {**os.environ, "MINDSPEED_MS_TARGET": "CPU"}))
    found = {row["name"]: (row["status"], row["detail"]) for row in rows}
    assert list(found) == ["fits", "ends by a signal", "is off", "hangs", "raises", "fits after all"]
    assert found["fits"] == found["fits after all"] == ("pass", "")
    assert found["ends by a signal"][0] == found["hangs"][0] == "fail"
    assert "process 0 ended with signal SIGSEGV" in found["ends by a signal"][1]
    assert "it hangs" in found["hangs"][1]
    assert found["raises"] == ("fail", "RuntimeError: this operator is refused")
    assert "[1, 1]: found 4.5, expected 4; 1 of 4 elements are off" in found["is off"][1]


def test_two_reports_are_compared_by_status_error_and_counts(clean: Path) -> None:
    ours = json.loads(clean.read_text())
    assert list(compare.differences(ours, copy.deepcopy(ours))) == []
    theirs = copy.deepcopy(ours)
    rows = {row["name"]: row for row in theirs["rows"]}
    rows["device"].update(status="fail", detail="one and one are not two on it")
    rows["NaN and infinity stay where they are"].update(error=0.5, allowed=1.0)
    rows["free and total memory"]["counts"]["free_bytes"] = 1
    rows["copies between host and device"]["counts"]["host_calls"] = 7
    theirs["rows"].remove(rows["two ranks"])
    found = list(compare.differences(theirs, ours))
    assert len(found) == 4
    assert found[0] == "versions: device: fail there, pass here (one and one are not two on it)"
    assert found[1] == "memory: copies between host and device: host_calls 7 there, None here"
    assert found[2].startswith("rules: NaN and infinity stay where they are: error 5.00e-01 there")
    assert found[3] == "lost peer: two ranks: only here"


def test_without_a_card_it_says_so_in_one_sentence(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "MINDSPEED_MS_TARGET" and not k.startswith("ASCEND")}
    command = [sys.executable, "-m", "mindspeed_ms", "selftest"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=100)
    assert done.returncode == 2
    assert done.stderr.startswith("mindspeed-ms selftest: Ascend: CANN is not there")
    assert done.stderr.rstrip().endswith("MINDSPEED_MS_TARGET=CPU tries the CPU target instead")
    assert len(done.stderr.splitlines()) == 1
