"""The private names of torch that the package calls: all listed, none that is not there."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

from mindspeed_ms.config.compat import PRIVATE_TORCH

ROOT = Path(__file__).parents[2]
SOURCES = sorted(p for room in ("bridge", "patches") for p in (ROOT / room).rglob("*.py"))


def names_of_torch(tree: ast.Module) -> Iterator[str]:
    """Dotted names of torch that a module imports or reads, by whatever name it imported them."""
    local = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "torch":
                    local[alias.asname or "torch"] = alias.name if alias.asname else "torch"
                    yield alias.name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            for alias in node.names:
                local[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}"

    def dotted(node: ast.expr) -> str | None:
        if isinstance(node, ast.Name):
            return local.get(node.id)
        if isinstance(node, ast.Attribute):
            holder = dotted(node.value)
            return holder and f"{holder}.{node.attr}"
        return None

    for node in ast.walk(tree):
        name = dotted(node) if isinstance(node, ast.Attribute) else None
        if name:
            yield name


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def used() -> dict[str, str]:
    """Private name -> a file that uses it."""
    found = {}
    for path in SOURCES:
        for name in filter(is_private, names_of_torch(ast.parse(path.read_text()))):
            found.setdefault(name, str(path.relative_to(ROOT)))
    return found


def test_private_names_of_torch_stand_in_one_table():
    found = used()
    listed = {name for name in found for row in PRIVATE_TORCH if f"{row}.".startswith(f"{name}.")}
    parts = {name for name in found for row in PRIVATE_TORCH if name.startswith(f"{row}.")}
    missing = {name: path for name, path in found.items() if name not in listed | parts}
    assert not missing, "say in bridge/config/compat.py, PRIVATE_TORCH, what they are for"
    assert not PRIVATE_TORCH.keys() - found.keys(), "nobody uses them any more: take them out of the table"


def test_the_installed_torch_has_them():
    absent = []
    for name in PRIVATE_TORCH:
        holder, _, attribute = name.rpartition(".")
        value = importlib.import_module("torch")
        for part in holder.split(".")[1:]:
            value = getattr(value, part)
        if not hasattr(value, attribute):
            absent.append(name)
    assert absent == []
