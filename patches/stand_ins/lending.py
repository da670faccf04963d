"""Empty shells of a package, lent to one module that imports it unguarded.

``import triton`` at the top of a Megatron file stops a machine without CUDA even if none of its kernels is
ever launched. The shell exists in ``sys.modules`` only while the named Megatron module executes, so nothing
else (torch's own triton checks, other libraries) is told that the package is there. What the module took from
it raises ModuleNotFoundError when used later. If the real package is installed, nothing is done.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Lent:
    """Shells of ``packages`` (a package and its submodules) for the module ``borrower``. ``reason``: one
    sentence.

    Their names can be imported and used as decorators, but not called afterwards.
    """

    packages: tuple[str, ...]
    borrower: str
    reason: str


class Absent:
    """A name of a package that is not installed: usable in definitions, an error when called afterwards."""

    def __init__(self, package: Shell, name: str) -> None:
        self._package, self._name = package, name

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(self._package, f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Absent:
        self._package.check_open(self._name)
        # As a decorator (``@triton.jit``) the result stands for the kernel and bears its name.
        kernel = args[0].__name__ if len(args) == 1 and hasattr(args[0], "__name__") else self._name
        return Absent(self._package, kernel)

    def __getitem__(self, grid: Any) -> Absent:
        self._package.check_open(self._name)
        return self


class Shell(ModuleType):
    """The module lent when there is nothing to put behind the names of ``package``."""

    def __init__(self, package: str, borrower: str) -> None:
        super().__init__(package)
        self.__path__: list[str] = []
        self._borrower, self._open = borrower, True

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(self, name)

    def check_open(self, name: str) -> None:
        """Raise ModuleNotFoundError once the borrowing module has been imported."""
        if not self._open:
            package = self.__name__.partition(".")[0]
            raise ModuleNotFoundError(
                f"{self._borrower} needs {package} for {name}, and {package} is not installed: "
                "choose the Megatron option that does not use this GPU kernel",
                name=package,
            )

    def close(self) -> None:
        """From now on using any name taken from here is an error."""
        self._open = False


class Lender(importlib.abc.MetaPathFinder):
    """Finds the borrowing modules, and lends while they execute. It stands first on ``sys.meta_path``."""

    def __init__(self, table: Sequence[Lent]) -> None:
        self._table = table

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        lent = [s for s in self._table if fullname == s.borrower and not _is_installed(s.packages[0])]
        if not lent:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(fullname, path, target) if finder is not self else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _LendingLoader(spec.loader, lent)
                return spec
        return None


class _LendingLoader(importlib.abc.Loader):
    def __init__(self, inner: importlib.abc.Loader, lent: list[Lent]) -> None:
        self._inner, self._lent = inner, lent

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # inspect and linecache read sources through the module's loader: it is the real one again.
        module.__loader__ = self._inner
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        lent = {name: Shell(name, module.__name__) for s in self._lent for name in s.packages}
        sys.modules.update(lent)
        try:
            self._inner.exec_module(module)
        finally:
            for name, shell in lent.items():
                sys.modules.pop(name, None)
                shell.close()


def _is_installed(package: str) -> bool:
    if package in sys.modules:
        return True
    with suppress(ValueError):  # a module without a spec
        return importlib.util.find_spec(package) is not None
    return False
