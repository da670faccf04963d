"""The C types of aclnn's arguments, as MindSpore passes them.

MindSpore looks operators up by name and passes whatever its own code says; no compiler compares that with
what the library takes, and the documentation is no proof. But its library keeps a cache of executors for
each list of types, and the lists stand in the mangled names of that template:
``GraphCache<std::tuple<aclTensor*, double, ...>>``.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

Types = tuple[str, ...]
_CACHE = re.compile(r"GraphCache<std::tuple<(.*?), unsigned long\*, aclOpExecutor\*\*> ?>")
_NULL = "decltype(nullptr)"
#: Enumerations and signs do not change where an argument lies.
_SAME = {"aclDataType": "int", "aclCubeMathType": "signed char", "unsigned long": "long"}
#: A function may take less of an integer than it is passed: each has a register or a slot of its own.
_INTEGERS = ("signed char", "int", "long")


def passed_types(library: Path) -> set[Types]:
    """Every list of argument types, without workspace and executor, that ``library`` calls an operator
    with."""
    names = subprocess.run(["nm", "-D", str(library)], capture_output=True, text=True, check=True).stdout
    mangled = "\n".join(line.split()[-1] for line in names.splitlines() if "GraphCache" in line)
    plain = subprocess.run(["c++filt"], input=mangled, capture_output=True, text=True, check=True).stdout
    plain = plain.replace("mindspore::device::ascend::", "")
    return {tuple(types.split(", ")) for types in _CACHE.findall(plain)}


def called_names(library: Path) -> set[str]:
    """The operators whose name stands in ``library``."""
    return {name.decode() for name in re.findall(rb"\0(aclnn[A-Z]\w+)(?=\0)", library.read_bytes())}


def our_types() -> dict[str, Types]:
    """Argument types of each operator of the simulated ``libopapi.so``; in a process that runs on it."""
    library = ctypes.CDLL("libopapi.so")
    library.cannsim_signatures.restype = ctypes.c_char_p
    lines = library.cannsim_signatures().decode().splitlines()
    return {name: tuple(types.split(", ")) for name, types in (line.split("\t") for line in lines)}


def agrees(ours: Types, passed: Types) -> bool:
    """Whether a call with ``passed`` reaches a function that takes ``ours`` with every argument where it
    belongs."""
    return len(ours) == len(passed) and all(map(_fits, ours, passed))


def _fits(taken: str, passed: str) -> bool:
    taken, passed = _SAME.get(taken, taken), _SAME.get(passed, passed)
    if passed == _NULL:
        return taken.endswith("*")
    if taken in _INTEGERS and passed in _INTEGERS:
        return _INTEGERS.index(taken) <= _INTEGERS.index(passed)
    return taken == passed
