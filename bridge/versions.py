"""Versions of what the package stands on, checked by reading metadata: nothing is imported for it."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

CHECKED = ("torch", "mindspore", "megatron-core", "numpy")


@dataclass(frozen=True)
class Check:
    """A package, the versions accepted, and the version that an import would get (None: nothing)."""

    name: str
    accepted: SpecifierSet
    found: str | None

    @property
    def problem(self) -> str:
        """Empty when the version fits. A pre-release counts as its release."""
        if self.found is None:
            what = f"{self.name}, which is not installed"
        elif Version(self.found).base_version not in self.accepted:
            what = f"{self.name} {self.accepted}, but {self.name} {self.found} is installed"
        else:
            return ""
        advice = f"pip install '{self.name}{self.accepted}'"
        if self.name == "python":
            advice = "make the virtual environment with another Python"
        return f"mindspeed_ms needs {what}: {advice}"


def requirements() -> dict[str, SpecifierSet]:
    """Accepted versions of python and of the packages in ``CHECKED``, from this package's metadata.

    Raises ImportError if mindspeed_ms is not installed (only its source folder is on the path).
    """
    try:
        own = distribution("mindspeed-ms")
    except PackageNotFoundError:
        raise ImportError("mindspeed_ms is not installed: run `pip install .` in its source folder") from None
    parsed = [Requirement(text) for text in own.requires or ()]
    accepted = {r.name: r.specifier for r in parsed if r.name in CHECKED}
    return {"python": SpecifierSet(own.metadata["Requires-Python"]), **accepted}


def examine() -> Iterator[Check]:
    """A check of each requirement."""
    for name, accepted in requirements().items():
        yield Check(name, accepted, found(name))


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
        from mindspeed_ms.patches.verify import tree_version

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
