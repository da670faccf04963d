"""Writes `tests/conformance/FLAGS.md`: every flag of Megatron-LM's scripts, and what becomes of it here.

python -m tests.conformance.flags_table
"""

from __future__ import annotations

from pathlib import Path

from mindspeed_ms.patches.flags import Row, Status, row_of

from tests.conformance.flag_groups import STOCK_FLAGS, TRAINING, words
from tests.conformance.flag_groups_new import ALL_GROUPS, new_flags

DOCUMENT = Path(__file__).with_name("FLAGS.md")
READERS = {
    "torchrun": "torchrun reads it",
    "nsys": "the profiler nsys reads it",
    "slurm": "Slurm reads it",
    "modelopt": "read by scripts that need nvidia-modelopt",
    "multimodal": "read by the multimodal examples",
    "inference": "read by the inference scripts",
    "tools": "read by the data tools",
    "other scripts": "read by other examples and test tools",
    "nobody": "no parser of this tag has it any more",
}


def _meaning(flag: str, row: Row) -> tuple[str, str]:
    """Status and sentence of a flag that the table has a row for."""
    if flag != row.flag:
        return row.status.value, f"read only with --{row.flag}"
    status = row.status.value + (f" ({', '.join(row.values)})" if row.values else "")
    return status, row.reason


MOST_NAMED = 8
"""Groups that a cell names; of more it gives the number."""


def _groups_of() -> dict[str, list[str]]:
    """Flag -> names of the groups that run it."""
    found: dict[str, list[str]] = {}
    for name, group in ALL_GROUPS.items():
        given = words(group, tmp="", data="", vocab="", merges="", words="", tiktoken="", splits="")
        for flag in {word[2:] for word in given if word.startswith("--")}:
            found.setdefault(flag, []).append(name)
    return found


HEAD = ["", "| flag | status | meaning here | group |", "|---|---|---|---|"]


def _line(flag: str, reader: str, groups: dict[str, list[str]]) -> str:
    """A row of the table."""
    row = row_of(flag)
    status, meaning = Status.EFFECTIVE.value, ""
    if reader != TRAINING:
        status, meaning = "elsewhere", READERS[reader]
    elif row is not None:
        status, meaning = _meaning(flag, row)
    names = groups.get(flag, [])
    shown = f"{len(names)} of {len(ALL_GROUPS)}" if len(names) > MOST_NAMED else ", ".join(names)
    return f"| `--{flag}` | {status} | {meaning} | {shown} |"


def document() -> str:
    """The whole page."""
    groups = _groups_of()
    stock = [line.split("\t") for line in STOCK_FLAGS.read_text().splitlines()]
    lines = [
        "# Flags of Megatron-LM",
        "",
        "Written by `python -m tests.conformance.flags_table` from `patches/flags.py` and the groups of",
        "`tests/conformance/flag_groups.py` and `flag_groups_new.py`; not edited by hand.",
        "",
        "*effective*: Megatron reads it, and what it asks for happens. *harmless*: accepted, with one log",
        "line; the numbers are the same without it. *replaced*: accepted, with one log line that says what",
        "is computed instead: other numbers. *refused*: one sentence with the alternative. *elsewhere*: no",
        "flag of the training parser. *group*: the run of `test_flags.py` that drives it.",
        "",
        "## What scripts use",
        "",
        f"The {len(stock)} flags that the example scripts and functional tests of Megatron-LM core_v0.16.1",
        "use, the most used first.",
        *HEAD,
        *(_line(flag, reader, groups) for flag, _value, reader in stock),
        "",
        "## New since then",
        "",
        f"The {len(new_flags())} flags that the training parser of core_v0.19.1 knows and core_v0.16.1's",
        "does not.",
        *HEAD,
        *(_line(flag, TRAINING, groups) for flag in new_flags()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document())
