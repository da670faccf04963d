"""Where the package's Python asks which target it runs on: ``python -m tests.cann.branches``.

README.md has a row for each such function with the test that runs its Ascend side. The command lists the
functions, and fails for those without a row and for rows whose function is gone.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from .run import REPOSITORY

_ASKS = frozenset({"on_ascend", "target"})
_ROOMS = ("bridge", "patches")


def _asks(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return name in _ASKS and not node.args
    if isinstance(node, ast.Compare):
        return any(isinstance(part, ast.Constant) and part.value == "Ascend" for part in node.comparators)
    return False


def _functions(tree: ast.AST, outer: str = "") -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = f"{outer}{node.name}"
            if isinstance(node, ast.FunctionDef):
                yield name, node
            yield from _functions(node, f"{name}.")


def in_code() -> set[str]:
    """``path::function`` of every function that asks for the target."""
    found = set()
    for room in _ROOMS:
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            tree = ast.parse(path.read_text())
            for name, function in _functions(tree):
                if any(map(_asks, ast.walk(function))):
                    found.add(f"{path.relative_to(REPOSITORY)}::{name}")
    return found


def in_readme() -> set[str]:
    """The functions that have a row in README.md."""
    text = (Path(__file__).parent / "README.md").read_text()
    return set(re.findall(r"^\| `([\w/]+\.py::[\w.]+)` \|", text, re.MULTILINE))


def main() -> int:
    code, rows = in_code(), in_readme()
    for name in sorted(code):
        print(name)
    for text, names in (("has no row in README.md", code - rows), ("is gone", rows - code)):
        for name in sorted(names):
            print(f"{name} {text}", file=sys.stderr)
    return int(code != rows)


if __name__ == "__main__":
    sys.exit(main())
