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
from tests.conformance.flag_groups import Group, stock_flags, words
from tests.conformance.flag_groups_new import ALL_GROUPS, new_flags

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


def named_in(group: Group) -> set[str]:
    """Flags of a group's command line."""
    return {word[2:] for word in words(group, **PLACES) if word.startswith("--")}


def test_every_flag_is_in_a_group():
    used = {flag for group in ALL_GROUPS.values() for flag in named_in(group)}
    assert [flag for flag in (*stock_flags(), *new_flags()) if flag not in used] == []


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
    known = {*validated["parser"], *stock_flags(), *new_flags()}
    assert [f for row in flags.ROWS for f in (row.flag, *row.also) if f not in known] == []


def skip_other_release(validated, group):
    if unknown := named_in(group) - set(validated["parser"]):
        pytest.skip(f"the parser of this Megatron-LM has no --{min(unknown)}")


@pytest.mark.parametrize("name", ALL_GROUPS)
def test_arguments(validated, name):
    group, found = ALL_GROUPS[name], validated["groups"][name]
    skip_other_release(validated, group)
    if group.refused:
        assert group.refused in found["error"]
        return
    assert found["error"] == ""
    given = named_in(group)
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
@pytest.mark.parametrize("name", [name for name, group in ALL_GROUPS.items() if not group.refused])
def test_two_iterations(validated, megatron_lm_path, tmp_path, name):
    group = ALL_GROUPS[name]
    skip_other_release(validated, group)
    done = flag_runs.run(megatron_lm_path, group, tmp_path)
    text = done.stdout + done.stderr
    if done.returncode and group.needs and f"pip install {group.needs}" in text:
        pytest.skip(f"this Megatron-LM asks for {group.needs}: pip install mindspeed-ms[megatron-options]")
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
    assert all(0 < loss < 20 if group.loss else loss == 0 for loss in losses)
