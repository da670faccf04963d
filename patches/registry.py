"""The patch registry: what a patch is, when it is applied, and how it is taken back.

A patch names a target ``"package.module:Class.attr"``, what takes its place, the releases of that package it
is for, and the reason. :func:`arm` applies the patches of loaded modules (most of torch's are) and puts
post-import hooks (wrapt) on the others: a patch is applied when its module is imported. Arming imports
nothing.

Names copied by ``from x import y`` are updated in every loaded module. Copies inside other objects (a
``ModuleSpec`` that holds a class, a default argument, a ``partial``) made before the patch cannot be found:
prefer targets that are methods, which every holder of the class sees.

A target that does not exist is never created: it is an error in :mod:`.verify`, a :class:`PatchWarning` here.
"""

from __future__ import annotations

import enum
import functools
import importlib
import inspect
import pkgutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.machinery import ExtensionFileLoader
from types import ModuleType
from typing import Any, NamedTuple

import wrapt
from mindspeed_ms.config import compat
from mindspeed_ms.patches import stand_ins
from mindspeed_ms.patches.signatures import mismatch
from packaging.specifiers import SpecifierSet
from packaging.version import Version

AREAS = ("torch", "megatron")
"""The folders whose modules declare patches."""


class PatchWarning(RuntimeWarning):
    """A patch could not be applied; the package's own code stays in place."""


class State(enum.Enum):
    """Where a patch stands."""

    WAITING = "waiting"  # its module is not imported yet
    APPLIED = "applied"
    OTHER_VERSION = "not for this version"
    MISSING = "missing target"
    REFUSED = "refused"  # the signature does not fit
    REVERTED = "reverted"


class Kind(enum.Enum):
    """How ``Patch.replacement`` takes the target's place."""

    REPLACE = "replace"  # it is the new object
    AROUND = "around"  # it is called as replacement(original, *args, **kwargs)
    FACTORY = "factory"  # replacement(original) returns the new object


@dataclass(frozen=True)
class Patch:
    """One change to another package.

    ``target``: ``"package.module:name"`` or ``"...:Class.attr"``. ``replacement``: see :class:`Kind`; a plain
    function over a staticmethod, classmethod or property is wrapped alike. ``reason``: one sentence.
    ``versions``: PEP 440 specifier of the target's package; empty for every release.
    Raises ValueError for a malformed target, an empty reason, or a specifier that does not parse.
    """

    target: str
    replacement: Any
    reason: str
    versions: str = ""
    kind: Kind = Kind.REPLACE

    def __post_init__(self) -> None:
        module, colon, path = self.target.partition(":")
        if not colon or not all(n.isidentifier() for n in [*module.split("."), *path.split(".")]):
            raise ValueError(f"patch target {self.target!r} is not of the form 'package.module:Class.attr'")
        if not self.reason.strip():
            raise ValueError(f"patch of {self.target} gives no reason")
        SpecifierSet(self.versions)

    @property
    def module(self) -> str:
        """Dotted name of the module."""
        return self.target.partition(":")[0]

    @property
    def package(self) -> str:
        """Import name of the package."""
        return self.target.partition(":")[0].partition(".")[0]

    @property
    def path(self) -> str:
        """Dotted path inside the module."""
        return self.target.partition(":")[2]

    def is_for(self, version: str) -> bool:
        """Whether it is for release ``version`` of its package; a pre-release counts as its release."""
        return not self.versions or Version(version).base_version in SpecifierSet(self.versions)

    def signature(self) -> inspect.Signature | None:
        """The signature that callers of the patched target meet; None where it is known only when applied."""
        if self.kind is Kind.FACTORY or not callable(self.replacement):
            return None
        try:
            signature = inspect.signature(self.replacement, follow_wrapped=False)
        except ValueError:  # some builtins have none
            return None
        if self.kind is Kind.AROUND:
            signature = signature.replace(parameters=list(signature.parameters.values())[1:])
        return signature


_ABSENT = object()


class _Change(NamedTuple):
    """``new`` took the place of ``old``, which ``package`` calls ``name``."""

    old: Any
    new: Any
    name: str
    package: str


@dataclass
class Record:
    """A patch and what became of it. ``detail`` says why, in words, when the state needs it."""

    patch: Patch
    state: State = State.WAITING
    detail: str = ""
    module: Any = field(default=None, repr=False)  # the module object it was applied to
    holder: Any = field(
        default=None, repr=False
    )  # that module, or the class in it whose attribute was replaced
    original: Any = field(
        default=_ABSENT, repr=False
    )  # entry of holder.__dict__; _ABSENT if it was inherited
    installed: Any = field(default=_ABSENT, repr=False)

    @property
    def attribute(self) -> str:
        """Name of the replaced attribute of ``holder``."""
        return self.patch.path.rpartition(".")[2]

    def in_place(self) -> bool:
        """Whether the target still holds what this patch put there."""
        return self.installed is not _ABSENT and vars(self.holder).get(self.attribute) is self.installed


class Registry:
    """A set of patches with one life: declared, armed, applied module by module, disarmed.

    Safe to use from several threads. No import happens while its lock is held: a thread that is importing
    Megatron holds an import lock and comes here from the hook.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._records: dict[str, list[Record]] = {}  # by target
        self._hooked: set[str] = set()
        self._armed = False

    def add(self, patch: Patch) -> Patch:
        """Declare a patch. Raises ValueError when another one claims the target for a release in common."""
        with self._lock:
            rivals = self._records.setdefault(patch.target, [])
            for rival in rivals:
                if rival.patch == patch:
                    return patch
                known = compat.package(patch.package).verified
                shared = [v for v in known if patch.is_for(v) and rival.patch.is_for(v)]
                if shared or not known:
                    which = f" for {patch.package} {shared[-1]}" if shared else ""
                    raise ValueError(f"{patch.target} is already patched{which}")
            rivals.append(Record(patch))
            armed = self._armed
        if armed:
            self._hook([patch.module])
        return patch

    def replace(self, target: str, *, reason: str, versions: str = "") -> Callable[[Any], Any]:
        """Decorator: the function or class takes the target's place."""
        return self._decorator(target, reason, versions, Kind.REPLACE)

    def around(self, target: str, *, reason: str, versions: str = "") -> Callable[[Any], Any]:
        """Decorator: ``def f(original, <the target's parameters>)`` runs instead and may call ``original``.

        For a method, ``original`` comes before ``self``; it is the plain function.
        """
        return self._decorator(target, reason, versions, Kind.AROUND)

    def factory(self, target: str, *, reason: str, versions: str = "") -> Callable[[Any], Any]:
        """Decorator: ``def make(original)`` returns what takes the target's place, e.g. a subclass of it."""
        return self._decorator(target, reason, versions, Kind.FACTORY)

    def _decorator(self, target: str, reason: str, versions: str, kind: Kind) -> Callable[[Any], Any]:
        def declare(replacement: Any) -> Any:
            self.add(Patch(target, replacement, reason, versions, kind))
            return replacement

        return declare

    def arm(self) -> None:
        """Apply every patch whose module is loaded, hook the others. Calling it again changes nothing."""
        with self._lock:
            self._armed = True
            modules = sorted({r.patch.module for r in self.records()})
        self._hook(modules)

    def disarm(self) -> None:
        """Put every original back, also in the copies of names, and apply nothing until armed again."""
        with self._lock:
            self._armed = False
            undone: list[_Change] = []
            for record in self.records():
                if record.state is not State.APPLIED:
                    continue
                if not record.in_place():
                    record.detail = "somebody replaced it again after us: left as it is"
                elif record.original is _ABSENT:
                    delattr(record.holder, record.attribute)
                else:
                    setattr(record.holder, record.attribute, record.original)
                if record.holder is record.module:
                    undone.append(
                        _Change(record.installed, record.original, record.attribute, record.patch.package)
                    )
                record.state, record.module, record.holder = State.REVERTED, None, None
                record.original = record.installed = _ABSENT
            _update_copies(undone, _all_modules())

    def _hook(self, names: Iterable[str]) -> None:
        """Have the patches of these modules applied: now, or when the import of the module ends."""
        loaded = []
        for name in names:
            with self._lock:
                first = name not in self._hooked
                self._hooked.add(name)
            module = sys.modules.get(name)
            if module is None:
                # Copies made while the module executes (circular imports) sit in its own package.
                if first:
                    wrapt.register_post_import_hook(lambda m: self._apply([m], _modules_beside(m)), name)
            elif _is_executing(module):
                # torch's backend autoload arms us while Megatron's first `import torch` runs.
                _after_execution(module, functools.partial(self._apply_everywhere, module))
            else:
                loaded.append(module)
        if loaded:
            self._apply(loaded, _all_modules())

    def _apply_everywhere(self, module: ModuleType) -> None:
        self._apply([module], _all_modules())

    def _apply(self, modules: Iterable[ModuleType], others: Iterable[ModuleType]) -> None:
        """Apply the patches of ``modules``; names that ``others`` copied from there follow."""
        targets = {module.__name__: module for module in modules}
        versions = {name: package_version(name) for name in {_root(target) for target in targets}}
        with self._lock:
            if not self._armed:
                return
            done: list[_Change] = []
            for record in self.records():
                patch, module = record.patch, targets.get(record.patch.module)
                if module is None or record.module is module:
                    continue
                version = versions[patch.package]
                if not patch.is_for(version):
                    record.state = State.OTHER_VERSION
                    record.detail = f"{patch.package} is {version}, the patch is for {patch.versions}"
                    continue
                original = _install(record, module)
                if record.state is not State.APPLIED:
                    what = f"{patch.target} is not patched, {record.state.value}: {record.detail}"
                    warnings.warn(what, PatchWarning, stacklevel=2)
                elif record.holder is module:
                    done.append(_Change(original, record.installed, record.attribute, patch.package))
            _update_copies(done, others)

    def records(self) -> list[Record]:
        """Every declared patch with its state, sorted by target."""
        with self._lock:
            return [record for target in sorted(self._records) for record in self._records[target]]

    def table(self) -> str:
        """Plain text, one line per patch: target, state, why."""
        rows = [("target", "state", "why")]
        for record in self.records():
            detail = f" [{record.detail}]" if record.detail else ""
            rows.append((record.patch.target, record.state.value, record.patch.reason + detail))
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        return "\n".join(f"{t:<{widths[0]}}  {s:<{widths[1]}}  {why}" for t, s, why in rows)


def package_version(name: str) -> str:
    """Version of the package with the import name ``name``, which is imported: from a wheel or a checkout."""
    return importlib.import_module(compat.package(name).version_module or name).__version__


def _install(record: Record, module: ModuleType) -> Any:
    """Put the replacement in place and set the record's state. Returns the object that was there."""
    patch = record.patch
    try:
        holder, attribute, original = wrapt.resolve_path(module, patch.path)
    except AttributeError as error:
        record.state, record.detail = State.MISSING, str(error)
        return None
    entry = vars(holder).get(attribute, _ABSENT)
    # wrapt gives the raw class entry: the function inside is what patches see and what signatures are about.
    # A bound method (`name = Class.method` in a module) is called as it is.
    inner: Any = getattr(original, "fget", None) or getattr(original, "__func__", original)
    inner = original if inspect.ismethod(original) else inner
    problem = _signature_problem(patch, inner)
    if problem:
        record.state, record.detail = State.REFUSED, problem
        return original
    if patch.kind is Kind.AROUND:
        new = _around(patch.replacement, inner)
    elif patch.kind is Kind.FACTORY:
        new = patch.replacement(inner)
    else:
        new = patch.replacement
    record.module, record.holder = module, holder
    record.original, record.installed = entry, _like(original, new)
    setattr(holder, attribute, record.installed)
    record.state, record.detail = State.APPLIED, ""
    return original


def _signature_problem(patch: Patch, original: Any) -> str | None:
    new = patch.signature()
    if new is None or not callable(original):
        return None
    try:
        return mismatch(inspect.signature(original), new)
    except ValueError:  # some builtins have no signature
        return None


def _around(wrapper: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    return call


def _like(original: Any, new: Any) -> Any:
    """``new`` as the kind of class attribute that ``original`` is."""
    if isinstance(original, property) and not isinstance(new, property):
        return property(new, original.fset, original.fdel, original.__doc__)
    for binding in (staticmethod, classmethod):
        if isinstance(original, binding) and not isinstance(new, (staticmethod, classmethod)):
            return binding(new)
    return new


def _is_executing(module: ModuleType) -> bool:
    """Whether the module's own code is still running (the flag that CPython's import system keeps)."""
    return getattr(module.__spec__, "_initializing", False)


def _after_execution(module: ModuleType, callback: Callable[[], None]) -> None:
    """Call ``callback`` once the module that is executing now has been executed, unless its import fails.

    An import that has begun can be hooked no more; its end shows as the import system's write to the spec.
    """

    spec: Any = module.__spec__
    before: Any = type(spec)

    class WatchedSpec(before):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "_initializing" and not value:
                self.__class__ = before
                if sys.modules.get(module.__name__) is module:
                    callback()

    spec.__class__ = WatchedSpec


def _root(name: str | None) -> str:
    return (name or "").partition(".")[0]


def _all_modules() -> list[ModuleType]:
    return [m for m in list(sys.modules.values()) if isinstance(m, ModuleType)]


def _modules_beside(module: ModuleType) -> list[ModuleType]:
    return [m for m in _all_modules() if _root(m.__name__) in (_root(module.__name__), "__main__")]


def _update_copies(changes: list[_Change], modules: Iterable[ModuleType]) -> None:
    """Modules that hold ``old`` hold ``new`` afterwards.

    Constants have no identity of their own and are left alone. An object of another package that the target's
    package only names (``jit_fuser = torch.compile``) is replaced in that package's modules only, and only
    under the target's name. Our own modules keep what they hold, and so does compiled code (``torch._C``).
    """
    by_id: dict[int, list[_Change]] = {}
    for change in changes:
        if callable(change.old):
            by_id.setdefault(id(change.old), []).append(change)
    if not by_id:
        return
    wanted = by_id.keys()
    for module in modules:
        held = vars(module)
        if wanted.isdisjoint(map(id, held.values())) or _root(module.__name__) == "mindspeed_ms":
            continue
        if isinstance(module.__loader__, ExtensionFileLoader):
            continue
        for attribute, value in list(held.items()):
            found = by_id.get(id(value), ())
            # One object can stand for several names (aliases): the name tells which.
            for change in sorted(found, key=lambda change: change.name != attribute)[:1]:
                own = _root(getattr(change.old, "__module__", None)) in (change.package, "mindspeed_ms")
                named = attribute == change.name and _root(module.__name__) == change.package
                if own or named:
                    setattr(module, attribute, change.new)


default = Registry()
"""The registry that the modules in ``patches/torch`` and ``patches/megatron`` declare into."""

replace, around, factory, add = default.replace, default.around, default.factory, default.add


@functools.cache
def load() -> Registry:
    """Import every module of the areas (they only declare) and return the default registry."""
    for area in AREAS:
        package = importlib.import_module(f"mindspeed_ms.patches.{area}")
        for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            importlib.import_module(info.name)
    return default


def arm() -> None:
    """Arm every declared patch and stand-in: ``import mindspeed_ms.patch`` calls it."""
    load().arm()
    stand_ins.arm()


def disarm() -> None:
    """Take every patch back, and lend no stand-ins any more."""
    default.disarm()
    stand_ins.disarm()
