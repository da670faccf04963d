"""Which room may import which: the graph of imports, read from the syntax trees of bridge/ and patches/.

    config -> device -> routes -> comm -> kernels -> ops -> hf
        -> patches -> patch.py -> commands -> autoload, run

An edge may skip rooms, but never run up: a module imports from its own room and from those left of it.
``python tests/unit/test_layers.py`` prints the edges between rooms and every import inside a function.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "mindspeed_ms"
FOLDERS = {"bridge": PACKAGE, "patches": f"{PACKAGE}.patches"}

LAYERS = (
    "config",
    "device",
    "routes",
    "comm",
    "kernels",
    "ops",
    "hf",
    "patches",
    "patch",
    "commands",
    "start",
)
"""Rooms from left to right. ``patch`` is patch.py, the one place that puts the parts together; ``start`` are
the modules that something outside starts. The package itself, which imports nothing, counts as config."""
STARTED = ("__main__", "autoload", "run")

PENDING: frozenset[tuple[str, str]] = frozenset()
"""Edges that run up or close a circle and are on their way out: empty when the work is done."""

NEVER_AT_ONCE = {"mindspore": "takes 2-3 s and 350 MB: the first operator that runs on it imports it"}
"""Packages that every module imports inside functions, and none elsewhere: package -> why."""

WHY_LATER: dict[str, dict[str, str]] = {
    "torch takes seconds, and `run` sets its threads before it loads": {
        "autoload": "patch",
        "commands.convert": "hf",
        "commands.calibrate": "mindspeed_ms ops patch torch",
        "commands.doctor": "comm ops patch patches routes torch",
        "commands.generate": "megatron patch torch",
        "commands.patches": "patch patches",
        "commands.run": "patch",
        "commands.selftest": "device",
    },
    "what a script never asks for, it does not load: process groups": {
        "comm.names": "comm.groups comm.process_group comm.topology",
        "comm.topology": "comm.ascend comm.groups comm.hierarchy",
        "patches.megatron.checkpointing": "comm torch",
        "patches.megatron.parallel_state": "comm",
        "patches.torch.distributed": "comm",
    },
    "what a script never asks for, it does not load: lowerings, kernels": {
        "kernels.aten": "kernels.optimizer",
        "kernels.operator": "torch",
        "ops": "ops.auto ops.factories ops.host ops.random ops.registry",
        "patches.megatron.attention": "kernels routes",
        "patches.megatron.clip_grads": "kernels",
        "patches.megatron.fusions": "kernels",
        "patches.megatron.latent_attention": "kernels",
        "patches.megatron.moe": "kernels",
        "patches.megatron.norms": "kernels",
        "patches.megatron.rope": "kernels",
        "patches.megatron.tensor_parallel": "kernels",
    },
    "what a script never asks for, it does not load: Hugging Face folders": {
        "patches.megatron.hugging_face": "hf megatron",
    },
    "they come with the extra `examples`, and are for one command": {
        "commands.plot": "matplotlib tensorboard",
    },
    "Megatron is the script's to import; a patch waits until it has": {
        "hf.flags": "megatron",
        "hf.plan": "megatron",
        "hf.save": "megatron",
        "patches.megatron.attention": "megatron",
        "patches.megatron.checkpointing": "megatron",
        "patches.megatron.datasets": "megatron pybind11",
        "patches.megatron.fusions": "megatron",
        "patches.megatron.tensor_parallel": "megatron",
        "patches.stand_ins.transformer_engine.pytorch._linear": "megatron",
        "patches.stand_ins.transformer_engine.pytorch.attention": "megatron",
    },
}
"""Other imports inside functions: why -> module -> the rooms, packages and modules of its own room."""


class Edge(NamedTuple):
    importer: str
    imported: str
    line: int
    inside: bool
    """Whether the import stands in a function, or is for a type checker only."""


@cache
def modules() -> dict[str, Path]:
    found = {}
    for folder, prefix in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((prefix, *parts)).removesuffix(".__init__")] = path
    return found


def never(node: ast.AST) -> bool:
    """Whether it is ``if TYPE_CHECKING:``, which only a type checker runs."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(name: str, path: Path) -> Iterator[Edge]:
    """Every import of a module, relative ones resolved, and every name of one of our modules in a string."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def visit(node: ast.AST, inside: bool) -> Iterator[Edge]:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.Import(names=names):
                    yield from (Edge(name, alias.name, child.lineno, inside) for alias in names)
                case ast.ImportFrom(module=module, names=names, level=level):
                    base = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                    base = ".".join([*base, *([module] if module else [])])
                    for alias in names:
                        full = f"{base}.{alias.name}"
                        yield Edge(name, full if full in modules() else base, child.lineno, inside)
                case ast.Constant(value=str(text)) if "." in text and text in modules():
                    yield Edge(name, text, child.lineno, True)
            later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or never(child)
            yield from visit(child, inside or later)

    yield from visit(ast.parse(path.read_text()), False)


@cache
def edges() -> tuple[Edge, ...]:
    return tuple(edge for name, path in modules().items() for edge in imports(name, path))


def ours() -> set[tuple[str, str]]:
    """Edges between modules of this package."""
    return {(e.importer, e.imported) for e in edges() if e.imported in modules() and e.imported != e.importer}


def room(name: str) -> str:
    _, _, rest = name.partition(".")
    first = rest.partition(".")[0]
    if first in STARTED:
        return "start"
    return first if rest else "config"


def runs_up(edge: tuple[str, str]) -> bool:
    return LAYERS.index(room(edge[0])) < LAYERS.index(room(edge[1]))


def circles(graph: set[tuple[str, str]]) -> list[set[str]]:
    """Sets of modules that import each other, by way of others too."""
    after = defaultdict(set)
    for a, b in graph:
        after[a].add(b)

    def reached(start: str) -> set[str]:
        seen, left = set(), [start]
        while left:
            left += (new := after[left.pop()] - seen)
            seen |= new
        return seen

    reach = {name: reached(name) for name in list(after)}
    found = []
    for name, others in reach.items():
        circle = {other for other in others if name in reach.get(other, ())}
        if circle and circle not in found:
            found.append(circle)
    return found


def later() -> dict[str, set[str]]:
    """Module -> what it imports inside functions: modules of its own room, rooms, packages."""
    found = defaultdict(set)
    for edge in edges():
        if not edge.inside:
            continue
        importer, imported = edge.importer.removeprefix(f"{PACKAGE}."), edge.imported
        package = imported.partition(".")[0]
        if package in NEVER_AT_ONCE:
            continue
        if package != PACKAGE:
            found[importer].add(package)
        elif room(imported) == room(edge.importer):
            found[importer].add(imported.removeprefix(f"{PACKAGE}."))
        else:
            found[importer].add(imported.removeprefix(f"{PACKAGE}.").partition(".")[0])
    return found


def test_every_module_has_a_room():
    assert {room(name) for name in modules()} == set(LAYERS)


def test_no_edge_runs_up():
    assert not {edge for edge in ours() - PENDING if runs_up(edge)}


def test_no_circle():
    assert circles(ours() - PENDING) == []


def test_what_is_pending_is_still_wrong():
    wrong = {edge for edge in ours() if runs_up(edge) or any({*edge} <= circle for circle in circles(ours()))}
    assert not PENDING - wrong


def test_heavy_packages_are_imported_inside_functions_only():
    heavy = [edge for edge in edges() if edge.imported.partition(".")[0] in NEVER_AT_ONCE]
    assert heavy
    assert not [edge for edge in heavy if not edge.inside]


def test_imports_inside_functions_have_a_reason():
    listed = defaultdict(set)
    for by_module in WHY_LATER.values():
        for name, imported in by_module.items():
            listed[name] |= set(imported.split())
    assert dict(later()) == dict(listed)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import mindspeed_ms.ops.loss", ("mindspeed_ms.ops.loss", False)),
        ("def f():\n    from mindspeed_ms import ops", ("mindspeed_ms.ops", True)),
        ("from . import roster", ("mindspeed_ms.comm.roster", False)),
        ("from ..device import memory", ("mindspeed_ms.device.memory", False)),
        ("f = lambda: __import__('mindspeed_ms.ops')", ("mindspeed_ms.ops", True)),
    ],
)
def test_an_import_is_seen_however_it_is_written(source: str, found: tuple[str, bool], tmp_path: Path):
    path = tmp_path / "work.py"
    path.write_text(source)
    (edge,) = imports("mindspeed_ms.comm.work", path)
    assert (edge.imported, edge.inside) == found
    assert runs_up((edge.importer, edge.imported)) == ("ops" in source)


def test_a_circle_is_seen():
    assert circles({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")}) == [{"a", "b", "c"}]
    assert circles({("a", "b"), ("c", "b"), ("a", "c")}) == []


if __name__ == "__main__":
    between = {(room(b), room(a)) for a, b in ours() if room(a) != room(b)}
    for layer in LAYERS:
        left = [other for other in LAYERS if (other, layer) in between]
        print(f"{layer:<10} imports {', '.join(left) or 'no other room'}")
    print(f"\n{sum(map(runs_up, ours()))} edges up, {len(circles(ours()))} circles, of {len(ours())} edges\n")
    for edge in sorted(ours()):
        if runs_up(edge) or any({*edge} <= circle for circle in circles(ours())):
            print("  wrong:", *edge)
    print("imports inside functions:")
    for package, why in NEVER_AT_ONCE.items():
        print(f"  {package}: {why}")
    for why, by_module in WHY_LATER.items():
        print(f"  {why}:")
        for importer, imported in by_module.items():
            print(f"    {importer}: {imported}")
