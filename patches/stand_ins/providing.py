"""Packages that a machine without CUDA lacks, importable under their names as the folders beside this file.

A stand-in is laid out like the package that it stands for, and Python imports it from here as it would from
site-packages: only where there is no real one, for this finder stands last. What a folder does not have
stays absent.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.metadata
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = str(Path(__file__).parent)


@dataclass(frozen=True)
class Provided:
    """The package or module ``name`` of this folder. ``reason``: one sentence.

    ``version``: what ``importlib.metadata`` answers for the distribution of this name, for who asks there.
    """

    name: str
    reason: str
    version: str = ""


def refuse(function: str, **asked: Any) -> None:
    """NotImplementedError for an option of a provided `function` that is neither None nor False."""
    for option, value in asked.items():
        if value is not None and value is not False:
            raise NotImplementedError(f"{function}: {option} is not implemented: leave it out")


class _Metadata(importlib.metadata.Distribution):
    """Name and version of a provided package; there are no files."""

    def __init__(self, provided: Provided) -> None:
        self._text = f"Metadata-Version: 2.1\nName: {provided.name}\nVersion: {provided.version}\n"

    def read_text(self, filename: str) -> str | None:
        return self._text if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        raise FileNotFoundError(f"a provided package has no files: {path}")


class Provider(importlib.metadata.DistributionFinder):
    """Finds what the table names; modules inside a package are found by Python itself."""

    def __init__(self, table: Sequence[Provided]) -> None:
        self._table = {provided.name: provided for provided in table}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._table:
            return None
        return importlib.machinery.PathFinder.find_spec(fullname, [FOLDER], target)

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context | None = None
    ) -> list[importlib.metadata.Distribution]:
        """The one asked for by name; lists of what is installed do not show what is provided."""
        name = (getattr(context, "name", None) or "").lower().replace("-", "_")
        provided = self._table.get(name)
        return [_Metadata(provided)] if provided and provided.version else []

    def forget(self) -> None:
        """Take the provided modules that are loaded out of ``sys.modules``."""
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None) or ""
            if name.partition(".")[0] in self._table and file.startswith(FOLDER):
                del sys.modules[name]
