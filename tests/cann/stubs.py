"""Stubs for what MindSpore's Ascend libraries need from CANN and no source here defines.

A name that they link to must exist or they do not load; a name that they look up with ``dlsym`` should exist,
to say so when it is called. Each stub ends in ``csrc/stubs/trap.cpp`` with its name.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

#: Static registrations of GE operators: they return their object and do nothing.
_QUIET = re.compile(r"Register[CD]|TensorTypeC|PromoteC|2ge8Operator\d+(Set|Update|Add|\w*Register)")
#: GE attributes are never there: a status that is not success.
_FAILS = re.compile(r"2ge8Operator7GetAttr")
_LOOKED_UP = re.compile(
    r"(aclrt|aclmdl|aclop|acltdt|aclprof)[A-Z]\w+|acl[A-Z][a-z]+[A-Z]\w+"
    r"|Hccl(Comm|Get|All|Batch|Send|Recv|Red|Broad|Bar|Scat|Create|Set)\w*|shmemx?_\w+[a-z]"
)
_NOT_LOOKED_UP = re.compile(r"nn[A-Z]|Exception$|_$")
_NOT_CANN = re.compile(r"_?Py|_Z\w*pybind")
#: Libraries of the system that the needed names may also come from.
_SYSTEM = frozenset(
    ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6", "libgomp.so.1", "ld-linux-x86-64.so.2"]
)

LIBRARIES = ("graph", "hccl", "prof", "acl")


def symbols(library: Path) -> tuple[set[str], set[str]]:
    """The dynamic symbols that a library defines, and those that it needs."""
    defined: set[str] = set()
    needed: set[str] = set()
    listing = subprocess.run(["nm", "-D", str(library)], capture_output=True, text=True, check=False).stdout
    for line in listing.splitlines():
        *_, kind, name = line.split()
        if kind == "U":
            needed.add(name.split("@")[0])
        elif kind not in "wv":
            defined.add(name.split("@")[0])
    return defined, needed


def _system_libraries() -> list[Path]:
    cache = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    found = (line.rsplit("=>", 1)[1].strip() for line in cache.splitlines() if "=>" in line)
    return [Path(path) for path in found if Path(path).name in _SYSTEM]


def _strings(library: Path) -> Iterable[str]:
    text = re.findall(rb"[\x20-\x7e]{6,}", library.read_bytes())
    return (piece.decode() for piece in text)


def missing(mindspore: Path, ours: Iterable[Path]) -> tuple[set[str], set[str]]:
    """Names that the loader needs, and names that MindSpore may look up, which nobody else defines."""
    plugin = mindspore / "lib" / "plugin"
    shmem = list(plugin.glob("ascend/ms_kernels_symmetric_memory/shmem/*/lib/*.so"))
    users = [
        plugin / "libmindspore_ascend.so.2",
        plugin / "libmindspore_ops_ascend.so",
        mindspore / "lib" / "libmindspore_ge_backend.so",
        *(
            plugin / "ascend" / name
            for name in (
                "libmindspore_ascend_res_manager.so",
                "libmindspore_graph_ir.so",
                "libd_collective.so",
                "libhccl_plugin.so",
            )
        ),
        *shmem,
    ]
    definers = [
        *mindspore.glob("lib/*.so*"),
        *plugin.glob("*.so*"),
        *plugin.glob("ascend/*.so"),
        *mindspore.glob("_c_*.so"),
        *shmem,
        *ours,
        *_system_libraries(),
    ]
    have: set[str] = set()
    for library in definers:
        if not re.search("gpu11|mindspore_gpu|cpu_kernels", str(library)):
            have |= symbols(library)[0]
    linked: set[str] = set()
    looked_up: set[str] = set()
    for library in users:
        linked |= {name for name in symbols(library)[1] if not _NOT_CANN.match(name)}
        names = filter(_LOOKED_UP.fullmatch, _strings(library))
        looked_up |= {name for name in names if not _NOT_LOOKED_UP.search(name)}
    return linked - have, looked_up - have - linked


def _library_of(name: str) -> str:
    if name.startswith("_Z"):
        return "graph"
    if name.startswith("Hccl"):
        return "hccl"
    return "prof" if "prof" in name else "acl"


def _body(name: str, number: int) -> str:
    if _FAILS.search(name):
        return " mov $1,%eax\n ret\n"
    if _QUIET.search(name):
        return " mov %rdi,%rax\n ret\n"
    end = "cannsim_trap" if name.startswith("_Z") else "cannsim_refuse"
    label = f".L{number}"
    return (
        f" push %rbp\n lea {label}(%rip),%rdi\n call {end}\n pop %rbp\n ret\n"
        f'.section .rodata\n{label}: .asciz "{name}"\n.text\n'
    )


def assembler(mindspore: Path, ours: Iterable[Path]) -> dict[str, str]:
    """The stubs of each of :data:`LIBRARIES`, as assembler for x86-64."""
    linked, looked_up = missing(mindspore, ours)
    texts = dict.fromkeys(LIBRARIES, ".text\n")
    for number, name in enumerate(sorted(linked | looked_up)):
        texts[_library_of(name)] += f".globl {name}\n.type {name},@function\n{name}:\n{_body(name, number)}"
    return {library: text + ' .section .note.GNU-stack,"",@progbits\n' for library, text in texts.items()}
