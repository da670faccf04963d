"""Where the package asks which target it runs on, in Python and C++: ``python -m tests.cann.branches``.

README.md has a row for each such function with the test that runs its Ascend side. The command lists the
functions, and fails for those without a row, for rows whose function is gone, and for tests that are gone.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from .run import REPOSITORY

_ASKS = frozenset({"on_ascend", "opaque_memory", "target"})
_CPP_ASKS = re.compile(r"(?<![\w.])(on_ascend|opaque_memory)\(\)(?! \{|;)")
_CPP_FUNCTION = re.compile(r"^(\s*)(?:[\w:<>,&*]+ )+(\w+)\(")
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


def _cpp_functions(text: str) -> Iterator[str]:
    """The functions around the lines that ask: the nearest above that are less indented."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if not _CPP_ASKS.search(line):
            continue
        depth = len(line) - len(line.lstrip())
        for above in reversed(lines[: number + 1]):
            head = _CPP_FUNCTION.match(above)
            if head and len(head[1]) < max(depth, 1) and "{" in "".join(lines[lines.index(above) :][:6]):
                yield head[2]
                break


def in_code() -> set[str]:
    """``path::function`` of every function that asks for the target."""
    found = set()
    for path in sorted((REPOSITORY / "csrc").rglob("*.cpp")):
        found |= {f"{path.relative_to(REPOSITORY)}::{name}" for name in _cpp_functions(path.read_text())}
    for room in _ROOMS:
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            tree = ast.parse(path.read_text())
            for name, function in _functions(tree):
                if any(map(_asks, ast.walk(function))):
                    found.add(f"{path.relative_to(REPOSITORY)}::{name}")
    return found


def in_readme() -> dict[str, str]:
    """The functions that have a row in README.md, and the test that each row names."""
    text = (Path(__file__).parent / "README.md").read_text()
    return dict(
        re.findall(r"^\| `([\w/]+\.(?:py|cpp)::[\w.]+)` \| (`[\w/.:]+`|none: .+) \|$", text, re.MULTILINE)
    )


def _exists(test: str) -> bool:
    path, _, name = test.strip("`").partition("::")
    file = REPOSITORY / (path if path.startswith("tests/") else f"tests/cann/{path}")
    return test.startswith("none: ") or (file.is_file() and f"def {name}(" in file.read_text())


def main() -> int:
    code, rows = in_code(), in_readme()
    for name in sorted(code):
        print(name)
    problems = [f"{name} has no row in README.md" for name in sorted(code - rows.keys())]
    problems += [f"{name} is gone" for name in sorted(rows.keys() - code)]
    problems += [f"{test}, the test of {name}, is gone" for name, test in rows.items() if not _exists(test)]
    print(*problems, sep="\n", file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
