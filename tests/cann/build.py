"""Builds the simulated CANN with g++ and the installed torch: ``python -m tests.cann.build``.

The libraries go to a folder outside the repository, named by a checksum of everything they are made of; a
second build of the same sources does nothing. Objects are kept: only a changed file is compiled again.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import stubs

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "csrc"
#: The version of CANN that MindSpore's own kernels ask for.
VERSION = "9.1.0"
#: Libraries that must be loadable and that nothing here fills.
EMPTY = (
    "acl_op_compiler",
    "acl_tdt_queue",
    "acl_tdt_channel",
    "runtime",
    "nnopbase",
    "dummy_tls",
    "platform",
    "c_sec",
    "ascend_hal",
    "register",
    "exe_graph",
    "ascendalog",
    "mmpa",
)

_FLAGS = ["-O1", "-g1", "-fPIC", "-std=c++20", "-fvisibility=hidden", "-pthread"]
_WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter"]
#: The sum over ranks is a loop of ours: worth optimizing.
_FAST = {"reduce.cpp": ["-O3"]}


class Unavailable(RuntimeError):
    """The simulator cannot be built here, with the reason."""


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)  # imports nothing
    if found is None or not found.submodule_search_locations:
        raise Unavailable(f"the simulated CANN needs the package {name}: install it")
    return Path(next(iter(found.submodule_search_locations)))


def _require() -> None:
    if platform.machine() != "x86_64" or not sys.platform.startswith("linux"):
        raise Unavailable("the simulated CANN is written for MindSpore's x86-64 wheel on Linux")
    for tool in ("g++", "nm"):
        if shutil.which(tool) is None:
            raise Unavailable(f"the simulated CANN is built with {tool}: install it")
    plugin = _package("mindspore") / "lib" / "plugin" / "libmindspore_ops_ascend.so"
    if not plugin.exists():
        raise Unavailable(f"this MindSpore has no Ascend backend: {plugin} is missing")


def cache() -> Path:
    """The folder of all builds. MindSpore takes the text before the first "cann" of a path as CANN's root."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if "cann" in str(base):
        base = Path(tempfile.gettempdir())
    return base / "mindspeed_ms_npusim"


def _checksum(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()[:20]


def _headers() -> list[bytes]:
    return [path.read_bytes() for path in sorted(SOURCES.rglob("*.h"))]


def _versions() -> list[bytes]:
    compiler = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
    packages = [importlib.metadata.version(name) for name in ("torch", "mindspore")]
    return [text.encode() for text in (compiler.splitlines()[0], *packages)]


def root() -> Path:
    """CANN's root of the present sources, whether it is built or not; raises :class:`Unavailable`."""
    _require()
    sources = sorted([*SOURCES.rglob("*.cpp"), HERE / "build.py", HERE / "stubs.py"])
    key = _checksum([*_versions(), *_headers(), *(path.read_bytes() for path in sources)])
    return cache() / key / "cann"


def _run(command: Sequence[object]) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


class _Compiler:
    """Objects by the checksum of their source, headers, flags and versions."""

    def __init__(self) -> None:
        self.objects = cache() / "objects"
        self.objects.mkdir(parents=True, exist_ok=True)
        torch = _package("torch")
        self.torch_lib = torch / "lib"
        self.torch_flags = [
            *(f"-isystem{torch / path}" for path in ("include", "include/torch/csrc/api/include")),
            "-Wno-unused",
        ]
        self.versions = _versions()

    def _object(self, key: Iterable[bytes], command: Sequence[object], suffix: str = ".o") -> Path:
        target = self.objects / (_checksum(key) + suffix)
        if not target.exists():
            unfinished = target.with_suffix(f".{os.getpid()}{suffix}")
            _run([*command, "-o", unfinished])
            unfinished.rename(target)
        return target

    def precompiled(self) -> list[str]:
        """Flags that use ATen's headers, read once."""
        folder = self.objects / _checksum([*self.versions, b"ATen"])
        folder.mkdir(exist_ok=True)
        header = folder / "aten.h"
        header.write_text("#include <ATen/ATen.h>\n")
        if not (folder / "aten.h.gch").exists():
            unfinished = folder / f"aten.h.{os.getpid()}"
            _run(["g++", *_FLAGS, *self.torch_flags, "-x", "c++-header", header, "-o", unfinished])
            unfinished.rename(folder / "aten.h.gch")
        return ["-include", str(header)]

    def compile(self, source: Path, extra: Sequence[str]) -> Path:
        flags = [*_FLAGS, *_WARNINGS, *extra, *_FAST.get(source.name, [])]
        key = [*self.versions, *_headers(), source.read_bytes(), " ".join(flags).encode()]
        return self._object(key, ["g++", *flags, "-c", source])

    def assemble(self, text: str) -> Path:
        source = self.objects / f"{_checksum([text.encode()])}.S"
        source.write_text(text)
        return self._object([text.encode()], ["gcc", "-c", source])


def _link(lib: Path, name: str, inputs: Sequence[object]) -> None:
    _run(["g++", "-shared", f"-Wl,-soname,{name}", "-o", lib / name, *inputs, "-pthread"])


def _libraries(compiler: _Compiler, jobs: int) -> dict[str, list[Path]]:
    aten = [*compiler.torch_flags, *compiler.precompiled()]
    work = [
        (folder, source)
        for folder in ("opapi", "runtime", "ge", "hccl", "stubs")
        for source in sorted((SOURCES / folder).glob("*.cpp"))
    ]
    with ThreadPoolExecutor(jobs) as threads:
        objects = list(threads.map(lambda w: compiler.compile(w[1], aten if w[0] == "opapi" else []), work))
    groups: dict[str, list[Path]] = {}
    for (folder, source), built in zip(work, objects, strict=True):
        groups.setdefault("profiler" if source.stem == "profiler" else folder, []).append(built)
    return groups


def _layout(folder: Path) -> Path:
    """The files that MindSpore looks for beside the libraries; returns the libraries' folder."""
    lib = folder / "lib64"
    tbe = "opp/built-in/op_impl/ai_core/tbe"
    for path in ("lib64", "compiler", tbe, "cust/op_api/lib", "python/hccl"):
        (folder / path).mkdir(parents=True)
    (folder / "compiler/version.info").write_text(f"Version={VERSION}\n")
    (folder / "python/hccl/__init__.py").write_text("from . import sys_version\n")
    (folder / "python/hccl/sys_version.py").write_text(f"__sys_version__ = '{VERSION}'\n")
    (folder / "cust/op_api/lib/libcust_opapi.so").symlink_to("../../../lib64/libopapi.so")
    return lib


def _build(folder: Path, jobs: int) -> None:
    compiler = _Compiler()
    groups = _libraries(compiler, jobs)
    lib = _layout(folder)
    with tempfile.TemporaryDirectory() as scratch:
        probes = []
        for group in ("runtime", "profiler", "ge", "hccl"):
            probes.append(Path(scratch) / f"{group}.so")
            _run(["g++", "-shared", *groups[group], "-o", probes[-1], "-pthread"])
        stub = {
            name: compiler.assemble(text)
            for name, text in stubs.assembler(_package("mindspore"), probes).items()
        }
    trap = groups["stubs"]
    acl = [f"-L{lib}", "-lascendcl"]
    _link(lib, "libascendcl.so", [*groups["runtime"], stub["acl"], *trap])
    _link(lib, "libmsprofiler.so", [*groups["profiler"], stub["prof"], *trap])
    (lib / "libprofapi.so").symlink_to("libmsprofiler.so")
    _link(lib, "libgraph.so", [*groups["ge"], stub["graph"], *trap])
    _link(lib, "libge_runner.so", ["-Wl,--no-as-needed", f"-L{lib}", "-lgraph"])
    _link(lib, "libhccl.so", [*groups["hccl"], stub["hccl"], *trap, *acl])
    for name in EMPTY:
        _link(lib, f"lib{name}.so", ["-Wl,--no-as-needed", *acl])
    torch_lib = compiler.torch_lib
    _link(
        lib,
        "libopapi.so",
        [
            *groups["opapi"],
            *acl,
            "-lhccl",
            f"-L{torch_lib}",
            "-ltorch_cpu",
            "-lc10",
            f"-Wl,-rpath,{torch_lib}",
            "-Wl,--no-undefined",
        ],
    )


def build(jobs: int | None = None) -> Path:
    """CANN's root, built if it is not there; raises :class:`Unavailable` where that cannot be."""
    target = root()
    if target.exists():
        return target
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            unfinished = cache() / f"unfinished.{os.getpid()}" / "cann"
            try:
                _build(unfinished, jobs or min(2, os.cpu_count() or 1))
                unfinished.parent.rename(target.parent)
            finally:
                shutil.rmtree(unfinished.parent, ignore_errors=True)
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cann.build", description=__doc__)
    parser.add_argument("--jobs", type=int, help="compilers at a time (default: 2)")
    try:
        print(build(parser.parse_args(arguments).jobs))
    except Unavailable as reason:
        print(reason, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
