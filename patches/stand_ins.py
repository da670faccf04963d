"""Packages that Megatron imports and a machine without CUDA lacks: empty shells, or modules with our kernels.

**Lent** (:func:`lend`): an empty shell for one Megatron module that imports the package unguarded.

``import triton`` at the top of a Megatron file stops a machine without CUDA even if none of its kernels is
ever launched. The stand-in exists in ``sys.modules`` only while the named Megatron module executes, so
nothing else (torch's own triton checks, other libraries) is told that the package is there. What the module
took from it raises ModuleNotFoundError when used later. If the real package is installed, nothing is done.

**Provided** (:func:`provide`): a CUDA extension whose functions our kernels implement, importable by its name
unless a real one is installed.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any


def refuse(function: str, **asked: Any) -> None:
    """NotImplementedError for an option of a provided `function` that is neither None nor False."""
    for option, value in asked.items():
        if value is not None and value is not False:
            raise NotImplementedError(f"{function}: {option} is not implemented: leave it out")


@dataclass(frozen=True)
class StandIn:
    """Empty shells of ``packages`` (a package and its submodules) lent to the Megatron module ``borrower``.

    Their names can be imported and used as decorators, but not called afterwards. ``reason``: one sentence.
    """

    packages: tuple[str, ...]
    borrower: str
    reason: str


@dataclass(frozen=True)
class Provided:
    """The module ``name``, filled by ``fill(module)`` when it is first imported. ``reason``: one sentence.

    ``package``: other modules are provided below it; any that is not declared stays absent. ``version``: what
    ``importlib.metadata`` answers for the distribution of this name.
    """

    name: str
    fill: Callable[[ModuleType], None]
    reason: str
    package: bool = False
    version: str = ""


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


class _Lender(importlib.abc.MetaPathFinder):
    """Finds the borrowing Megatron modules, and lends while they execute."""

    def __init__(self) -> None:
        self.stand_ins: list[StandIn] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        lent = [s for s in self.stand_ins if fullname == s.borrower and not _is_installed(s.packages[0])]
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
    def __init__(self, inner: importlib.abc.Loader, stand_ins: list[StandIn]) -> None:
        self._inner, self._stand_ins = inner, stand_ins

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # inspect and linecache read sources through the module's loader: it is the real one again.
        module.__spec__.loader = module.__loader__ = self._inner
        lent = {name: Shell(name, module.__name__) for s in self._stand_ins for name in s.packages}
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


class _Metadata(importlib.metadata.Distribution):
    """Name and version of a provided package; there are no files."""

    def __init__(self, provided: Provided) -> None:
        self._text = f"Metadata-Version: 2.1\nName: {provided.name}\nVersion: {provided.version}\n"

    def read_text(self, filename: str) -> str | None:
        return self._text if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        raise FileNotFoundError(f"a provided package has no files: {path}")


class _Provider(importlib.metadata.DistributionFinder, importlib.abc.Loader):
    """Finds the provided modules. It stands last on ``sys.meta_path``, so a real one is found first."""

    def __init__(self) -> None:
        self.provided: dict[str, Provided] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        provided = self.provided.get(fullname)
        if provided is None:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=provided.package)

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context | None = None
    ) -> list[importlib.metadata.Distribution]:
        """The one asked for by name; lists of what is installed do not show what is provided."""
        name = (getattr(context, "name", None) or "").lower().replace("-", "_")
        provided = self.provided.get(name)
        return [_Metadata(provided)] if provided and provided.version else []

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """The import system makes the module."""

    def exec_module(self, module: ModuleType) -> None:
        self.provided[module.__name__].fill(module)


_lender = _Lender()
_provider = _Provider()


def lend(stand_in: StandIn) -> None:
    """Declare a shell; declared twice it counts once."""
    if stand_in not in _lender.stand_ins:
        _lender.stand_ins.append(stand_in)


def provide(provided: Provided) -> None:
    """Declare a module to provide. Raises ValueError if another one has its name."""
    if _provider.provided.setdefault(provided.name, provided) != provided:
        raise ValueError(f"module {provided.name} is provided already")


def table() -> str:
    """Plain text: a line for each shell and each provided module."""
    lines = [f"{s.packages[0]} is lent to {s.borrower}: {s.reason}" for s in _lender.stand_ins]
    lines += [f"{p.name} is provided: {p.reason}" for p in _provider.provided.values()]
    return "\n".join(lines)


def arm() -> None:
    """Start lending and providing; calling it again changes nothing."""
    if _lender not in sys.meta_path:
        sys.meta_path.insert(0, _lender)
        sys.meta_path.append(_provider)


def disarm() -> None:
    """Stop, for imports from now on."""
    if _lender in sys.meta_path:
        sys.meta_path.remove(_lender)
        sys.meta_path.remove(_provider)
    for name in _provider.provided:
        if getattr(sys.modules.get(name), "__loader__", None) is _provider:
            del sys.modules[name]
