"""Versions of what the package stands on, checked by reading metadata: nothing is imported for it."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mindspeed_ms.config import compat
from packaging.specifiers import SpecifierSet
from packaging.version import Version


@dataclass(frozen=True)
class Check:
    """A package, the versions accepted, and the version that an import would get (None: nothing)."""

    name: str
    accepted: SpecifierSet
    found: str | None

    @property
    def newer(self) -> bool:
        """Whether it is a release after the newest that patches were verified against: it may still work."""
        verified = next((p.verified for p in compat.PACKAGES.values() if p.distribution == self.name), ())
        return (
            self.name == "megatron-core"
            and self.found is not None
            and Version(self.found) > Version(verified[-1])
        )

    @property
    def problem(self) -> str:
        """Empty when the version fits, or is newer. A pre-release counts as its release."""
        if self.found is None:
            what = f"{self.name}, which is not installed"
        elif Version(self.found).base_version not in self.accepted and not self.newer:
            what = f"{self.name} {self.accepted}, but {self.name} {self.found} is installed"
        else:
            return ""
        advice = f"pip install '{self.name}{self.accepted}'"
        if self.name == "python":
            advice = "make the virtual environment with another Python"
        return f"mindspeed_ms needs {what}: {advice}"


def examine() -> Iterator[Check]:
    """A check of Python and of each package that :mod:`.compat` lists."""
    for name, accepted in {"python": compat.PYTHON, **compat.requirements()}.items():
        yield Check(name, SpecifierSet(accepted), found(name))


def check() -> None:
    """Raise ImportError with one sentence if something is missing or has a version that does not fit."""
    for requirement in examine():
        if requirement.problem:
            raise ImportError(requirement.problem)


def found(name: str) -> str | None:
    """Version of ``name`` that an import would get, or None. A Megatron-LM checkout goes before a wheel."""
    if name == "python":
        return platform.python_version()
    if name == "megatron-core":
        tree = megatron_tree()
        return tree_version(tree) if tree else None
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def megatron_tree() -> Path | None:
    """The folder of the ``megatron/core`` that an import would get (site-packages or a checkout), or None."""
    if "megatron.core" in sys.modules:
        spec = sys.modules["megatron.core"].__spec__
    elif importlib.util.find_spec("megatron") is None:
        return None
    else:
        spec = importlib.util.find_spec("megatron.core")
    return Path(spec.origin).parents[2] if spec and spec.origin else None


def tree_version(root: Path) -> str:
    """Megatron-Core version of the tree that holds ``megatron/core``; FileNotFoundError if there is none."""
    text = (root / "megatron/core/package_info.py").read_text()
    parts = {k: re.search(rf"^{k}\s*=\s*['\"]?([\w.]*)", text, re.M) for k in ("MAJOR", "MINOR", "PATCH")}
    return ".".join(match.group(1) for match in parts.values() if match)
