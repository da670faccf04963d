"""Check patch targets against a Megatron source tree by reading it: nothing of that tree is imported.

So every supported release can be checked in one process, whichever is installed. Targets in other packages
are checked when they are patched (:class:`.registry.State`).
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from inspect import Parameter, Signature
from pathlib import Path

from mindspeed_ms.config import compat
from mindspeed_ms.config.versions import examine, megatron_tree, tree_version
from mindspeed_ms.patches.registry import Patch, PatchWarning, load
from mindspeed_ms.patches.signatures import mismatch


@dataclass(frozen=True)
class Finding:
    """A patch that does not fit a tree: which, in what version, and what is wrong."""

    patch: Patch
    version: str
    problem: str

    def __str__(self) -> str:
        return f"{self.patch.target} in Megatron {self.version}: {self.problem}"


def verify(root: Path, patches: Iterable[Patch]) -> list[Finding]:
    """What is wrong with ``patches`` in the Megatron tree at ``root``, a checkout or an unpacked wheel.

    A patch of another package or for other versions is not looked at, nor is one of a part that the tree does
    not have (the PyPI wheel holds ``megatron.core`` only).
    """
    version = tree_version(root)
    findings = []
    for patch in patches:
        if patch.package != "megatron" or not patch.is_for(version):
            continue
        if not (root / "/".join(patch.module.split(".")[:2])).is_dir():
            continue
        problem = _problem(root, patch)
        if problem:
            findings.append(Finding(patch, version, problem))
    return findings


def warn_of_new_release() -> None:
    """A :class:`PatchWarning` if the Megatron-Core here is newer than any that was verified: what changed."""
    tree = megatron_tree()
    if tree is None or not any(check.newer for check in examine()):
        return
    findings = verify(tree, (record.patch for record in load().records()))
    changed = "; ".join(f"{f.patch.target}: {f.problem}" for f in findings)
    newest = compat.PACKAGES["megatron"].verified[-1]
    warnings.warn(
        f"Megatron-Core {tree_version(tree)} is newer than {newest}, the newest that was verified "
        f"({changed or 'every patch target is as it was'}): hold a loss against plain torch first",
        PatchWarning,
        stacklevel=2,
    )


def _problem(root: Path, patch: Patch) -> str | None:
    base = root / patch.module.replace(".", "/")
    file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    if not file.is_file():
        return f"there is no module {patch.module}"
    scope: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"), str(file))]
    for name in patch.path.split("."):
        scope = [found for holder in scope for found in _definitions(holder, name)]
        if not scope:
            return f"{name!r} is not defined there"
    new = patch.signature()
    if new is None:
        return None
    for definition in scope:
        original = _signature(definition)
        wrong = mismatch(original, new) if original else None
        if wrong:
            return wrong
    return None


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a body and of the if / try / with blocks in it: Megatron defines names under both."""
    for statement in body:
        yield statement
        for block in ("body", "orelse", "finalbody"):
            if isinstance(statement, (ast.If, ast.Try, ast.With)):
                yield from _statements(getattr(statement, block, []))
        for handler in getattr(statement, "handlers", []):
            yield from _statements(handler.body)


def _definitions(holder: ast.AST, name: str) -> Iterator[ast.AST]:
    if not isinstance(holder, (ast.Module, ast.ClassDef)):
        return
    for node in _statements(holder.body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [(alias.asname or alias.name.split(".")[0]) for alias in node.names]
        elif isinstance(node, ast.Assign):
            names = [t.id for target in node.targets for t in ast.walk(target) if isinstance(t, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            continue
        if name in names:
            yield node


def _signature(definition: ast.AST) -> Signature | None:
    """Signature of a function, or of a class's own ``__init__`` without self; None if there is none."""
    if isinstance(definition, ast.ClassDef):
        init = next(
            (n for n in definition.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None
        )
        signature = _signature(init) if init else None
        return signature.replace(parameters=list(signature.parameters.values())[1:]) if signature else None
    if not isinstance(definition, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return None
    a = definition.args
    kinds = [Parameter.POSITIONAL_ONLY] * len(a.posonlyargs) + [Parameter.POSITIONAL_OR_KEYWORD] * len(a.args)
    positional = list(zip([*a.posonlyargs, *a.args], kinds, strict=True))
    required = len(positional) - len(a.defaults)
    parameters = [
        Parameter(p.arg, kind, default=Parameter.empty if i < required else None)
        for i, (p, kind) in enumerate(positional)
    ]
    if a.vararg:
        parameters.append(Parameter(a.vararg.arg, Parameter.VAR_POSITIONAL))
    for p, default in zip(a.kwonlyargs, a.kw_defaults, strict=True):
        parameters.append(
            Parameter(p.arg, Parameter.KEYWORD_ONLY, default=Parameter.empty if default is None else None)
        )
    if a.kwarg:
        parameters.append(Parameter(a.kwarg.arg, Parameter.VAR_KEYWORD))
    return Signature(parameters)
