"""How many files a change takes: ``python -m tests.conformance.newcomer [--quick] [--json FILE]``.

For each kind of change, the examples that exist are read from the project's own tables, and the files that
name each of them are found. CONTRIBUTING.md works through one example of each kind. Fails where that one
touches more than three files, or where the files that CONTRIBUTING.md numbers are others.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mindspeed_ms.patch  # noqa: F401 - fills the tables
from mindspeed_ms import _native, _runtime
from mindspeed_ms.config import compat, settings
from mindspeed_ms.kernels import operator
from mindspeed_ms.ops.registry import table
from mindspeed_ms.patches import flags, registry, stand_ins

ROOT = Path(__file__).resolve().parents[2]
MOST = 3
"""Files that a change of one kind may touch."""


@dataclass(frozen=True)
class Change:
    """A kind of change.

    ``title``: its heading in CONTRIBUTING.md. ``examples``: name -> expression that finds it in a file or in
    a path. ``rooms``: what such a change belongs to, as beginnings of paths; what merely uses an example (a
    kernel in a patch, a version in a report) stands elsewhere.
    """

    title: str
    examples: Callable[[], dict[str, str]]
    rooms: tuple[str, ...]


def _words(names: Iterable[str]) -> dict[str, str]:
    return {name: rf"(?<![\w.-]){re.escape(name)}(?![\w-])" for name in names}


def _lowerings() -> dict[str, str]:
    _runtime.ensure_initialized()  # fills the table
    return {name: rf'"(aten::)?{re.escape(name.removeprefix("aten::"))}"' for name in table}


def _kernels() -> dict[str, str]:
    """Operators that people call: those of gradients come with them."""
    return _words(name for name in operator.OPERATORS if "backward" not in name)


def _ascend_forms() -> dict[str, str]:
    """Where an operator's schema stands, its forms do."""
    return {name: rf'"{name}\(' for name, found in operator.OPERATORS.items() if found.on_mindspore}


def _csrc_forms() -> dict[str, str]:
    files = [path.stem for path in (ROOT / "csrc/kernels").glob("*.cpp") if path.with_suffix(".inl").exists()]
    return {name: rf"\bX\({name}\)|^csrc/kernels/{name}\.(cpp|inl)$" for name in files}


def _patches() -> dict[str, str]:
    names = {record.patch.target.partition(":")[2] for record in registry.load().records()}
    return {name: rf'[:"]{re.escape(name)}"' for name in names}


def _flags() -> dict[str, str]:
    return {f"--{row.flag}": rf'"{row.flag}"|--{row.flag}(?![\w-])' for row in flags.ROWS}


def _variables() -> dict[str, str]:
    names = [setting.name.removeprefix(settings.PREFIX) for setting in settings.TABLE]
    return {name: rf"{settings.PREFIX}{name}\b|settings\.{name}\b|(?m:^{name} = )" for name in names}


def _stand_ins() -> dict[str, str]:
    names = [provided.name for provided in stand_ins.PROVIDED]
    return {name: rf'"{name}"|^patches/stand_ins/{name}[./]' for name in names}


def _supported(package: str) -> dict[str, str]:
    """The releases that a specifier admits, as it is written where the package is asked for."""
    release = re.search(r"\d+\.\d+", compat.package(package).supported)
    return {release[0]: rf"==\s*{re.escape(release[0])}"} if release else {}


CODE = ("bridge/", "patches/", "csrc/", "examples/", "setup.py", "pyproject.toml")
CHANGES = (
    Change("A lowering", _lowerings, ("bridge/ops", "csrc/aten", "tests/unit")),
    Change("A fused kernel", _kernels, ("bridge/kernels",)),
    Change("Its form on the CPU", _csrc_forms, ("csrc/kernels",)),
    Change("Its form on Ascend", _ascend_forms, ("bridge/kernels", "tests/cann/test_")),
    Change("A patch", _patches, ("patches/", "tests/unit")),
    Change("A flag", _flags, ("patches/", "tests/conformance")),
    Change("A reduce operation", lambda: _words(_native.comm.REDUCTIONS), ("bridge/", "csrc/", "tests/")),
    Change(
        "A Megatron release",
        lambda: _words(compat.package("megatron").verified),
        (*CODE, "tests/unit", "tests/distributed"),
    ),
    Change("A torch release", lambda: _supported("torch"), CODE),
    Change("An environment variable", _variables, CODE),
    Change("A stand-in", _stand_ins, ("patches/",)),
)


@cache
def sources() -> dict[str, str]:
    """Path -> path and text of every file of the project."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {
        name: f"{name}\n{(ROOT / name).read_text(errors='replace')}"
        for name in listed.splitlines()
        if (ROOT / name).is_file()
    }


def touched(change: Change) -> dict[str, set[str]]:
    """Example -> files that name it."""
    texts = {name: text for name, text in sources().items() if name.startswith(change.rooms)}
    return {
        example: {name for name, text in texts.items() if name_in(expression, name, text)}
        for example, expression in change.examples().items()
    }


def name_in(expression: str, path: str, text: str) -> bool:
    """Whether an expression finds something in a file or is its path."""
    return bool(re.search(expression, path) or re.search(expression, text))


@dataclass(frozen=True)
class Told:
    """What a section of CONTRIBUTING.md says: its example, the files that it numbers."""

    example: str
    files: frozenset[str]


def told() -> dict[str, Told]:
    """Heading -> what its section says. A section names its example in backticks after "Example:"."""
    found = {}
    for section in re.split(r"(?m)^## ", (ROOT / "CONTRIBUTING.md").read_text())[1:]:
        example = re.search(r"Example: `([^`]+)`", section)
        if example:
            files = frozenset(re.findall(r"(?m)^\d+\. `([^`]+)`", section))
            found[section.partition("\n")[0]] = Told(example[1], files)
    return found


def examine(change: Change, said: Told | None) -> dict[str, Any]:
    """A row of the report; ``wrong`` says what falls short."""
    found = touched(change)
    named = {example: files for example, files in found.items() if files}
    row: dict[str, Any] = {
        "change": change.title,
        "example": said and said.example,
        "files": [],
        "examples": len(named),
        "within": sum(len(files) <= MOST for files in named.values()),
        "wrong": "",
    }
    if said is None:
        return {**row, "wrong": "CONTRIBUTING.md has no section of it that names an example"}
    if not named.get(said.example):
        return {**row, "wrong": f"{said.example} is no example of it in the code"}
    row["files"] = sorted(named[said.example])
    if len(row["files"]) > MOST:
        row["wrong"] = f"{len(row['files'])} files"
    elif said.files != set(row["files"]):
        row["wrong"] = f"CONTRIBUTING.md numbers {', '.join(sorted(said.files)) or 'none'}"
    return row


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; 1 if a mark falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the same: it takes seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    options = parser.parse_args(arguments)
    sections = told()
    rows = [examine(change, sections.get(change.title)) for change in CHANGES]
    for row in rows:
        print(f"{row['change']}, as {row['example']}: {len(row['files'])} files")
        for name in row["files"]:
            print(f"    {name}")
        print(f"    ({row['within']} of {row['examples']} examples are named in at most {MOST} files)")
        if row["wrong"]:
            print(f"    WRONG: {row['wrong']}")
    wrong = sum(bool(row["wrong"]) for row in rows)
    print(f"{len(rows)} kinds of change, {wrong} of them wrong")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
