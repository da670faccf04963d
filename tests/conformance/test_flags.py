"""Every flag of Megatron's scripts through its parser and checks, and, in groups, through two iterations."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mindspeed_ms.patches import flags
from mindspeed_ms.patches.flags import Status

from tests.conformance import flag_runs, flags_table
from tests.conformance.flag_groups import GROUPS, stock_flags, words

ROOT = Path(__file__).resolve().parents[2]
PRECISION = {"fp8", "fp4", "fp16", "bf16", "params_dtype", "main_grads_dtype", "first_last_layers_bf16"}
"""Attributes of Megatron's args that decide what a number is rounded to."""
PLACES = dict.fromkeys(("tmp", "data", "vocab", "merges", "words", "tiktoken", "splits"), "x")


@pytest.fixture(scope="module")
def validated(request):
    """What Megatron's parser and checks made of every group."""
    checkout = request.getfixturevalue("megatron_lm_path")
    command = [sys.executable, "-W", "ignore", "-m", "tests.conformance.flag_validation", str(checkout)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_stock_flag_is_in_a_group():
    used = {word[2:] for group in GROUPS.values() for word in words(group, **PLACES) if word.startswith("--")}
    assert [flag for flag in stock_flags() if flag not in used] == []


def test_each_flag_has_one_row():
    named = [flag for row in flags.ROWS for flag in (row.flag, *row.also)]
    assert sorted(set(named)) == sorted(named)


def test_reasons_are_one_sentence():
    for row in flags.ROWS:
        assert not row.reason.endswith("."), row.flag
        assert row.becomes or row.status is Status.REFUSED or row.flag == "no-persist-layer-norm", row.flag


def test_harmless_flags_change_no_number():
    assert {row.flag for row in flags.ROWS if PRECISION & row.becomes.keys()} == {
        row.flag for row in flags.ROWS if row.status is Status.REPLACED
    }


def test_the_document_is_current():
    text = flags_table.DOCUMENT.read_text()
    assert text == flags_table.document(), "run python -m tests.conformance.flags_table"


def test_rows_name_flags_of_the_parser(validated):
    known = set(validated["parser"])
    assert [f for row in flags.ROWS for f in (row.flag, *row.also) if f not in known] == []


@pytest.mark.parametrize("name", GROUPS)
def test_arguments(validated, name):
    group, found = GROUPS[name], validated["groups"][name]
    if group.refused:
        assert group.refused in found["error"]
        return
    assert found["error"] == ""
    given = {word[2:] for word in words(group, **PLACES) if word.startswith("--")}
    for row in flags.ROWS:
        if row.flag not in given or (row.values and not set(row.values) & set(words(group, **PLACES))):
            continue
        assert found["printed"].count(f"--{row.flag} {row.status.verdict}") == 1
        assert {k: found["settled"][k] for k in row.becomes if k in found["settled"]} == {
            k: str(v) for k, v in row.becomes.items() if k in found["settled"]
        }


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name, group in GROUPS.items() if not group.refused])
def test_two_iterations(megatron_lm_path, tmp_path, name):
    group = GROUPS[name]
    done = flag_runs.run(megatron_lm_path, group, tmp_path)
    text = done.stdout + done.stderr
    if group.fails:
        assert done.returncode != 0
        assert group.fails in text
        return
    assert done.returncode == 0, text[-4000:]
    losses = [float(loss) for loss in re.findall(r"lm loss: (\d+\.\d+E[+-]\d+)", text)]
    if group.ends:
        assert group.ends in text
        assert not losses
        return
    assert losses
    assert all(0 < loss < 20 for loss in losses)
