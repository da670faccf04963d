"""Runs a module of ours with the native kernels built under AddressSanitizer.

    python -m tests.conformance.sanitizer tests.conformance.kernel_fuzz --cases 10000

The extension `_native` (plain pybind11, no torch in it) is compiled once into build/asan; torch's memory then
has red zones, as malloc is the sanitizer's. A read or write beyond a tensor ends the process with a report.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import runpy
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "asan"
NAME = "mindspeed_ms._native"
FLAGS = ("-fsanitize=address", "-fno-omit-frame-pointer", "-g1", "-O1", "-std=c++20", "-fPIC", "-pthread")
#: No frame of the sanitizer in code that must hold 24 vectors in registers.
FLAGS += ("-fno-math-errno", "-fno-trapping-math", "-w", "--param=asan-stack=0")


def library(name: str) -> str:
    """Path of a library that belongs to the compiler."""
    return subprocess.run(
        ["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()


def _is_fresh(target: Path) -> bool:
    """Whether an object is newer than all that it was compiled from."""
    rule = target.with_suffix(".d")
    if not target.exists() or not rule.exists():
        return False
    sources = rule.read_text().replace("\\\n", " ").partition(":")[2].split()
    return all(Path(s).exists() and Path(s).stat().st_mtime < target.stat().st_mtime for s in sources)


def build() -> Path:
    """The sanitized extension, compiled where a source is newer than its object."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    folders = [ROOT / "csrc" / part for part in (".", "kernels", "comm")]
    sources = [path for folder in folders for path in sorted(folder.glob("*.cpp"))]
    includes = [f"-I{ROOT / 'csrc'}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    objects = []
    for source in sources:
        target = FOLDER / f"{source.parent.name}_{source.stem}.o"
        objects.append(str(target))
        if not _is_fresh(target):
            places = ("-MMD", "-c", str(source), "-o", str(target))
            subprocess.run(["g++", *FLAGS, *includes, *places], check=True)
    extension = FOLDER / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(["g++", *FLAGS, "-shared", *objects, "-lrt", "-ldl", "-o", str(extension)], check=True)
    return extension


def load(extension: Path) -> None:
    """Makes it the module that `from mindspeed_ms import _native` finds."""
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(extension))
    spec = importlib.util.spec_from_loader(NAME, loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[NAME] = module
    for part in ("kernels", "comm"):
        if hasattr(module, part):
            sys.modules[f"{NAME}.{part}"] = getattr(module, part)


def main() -> None:
    """Builds, starts itself again under the sanitizer, runs the module named first."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    runtime = library("libasan.so")
    if runtime not in os.environ.get("LD_PRELOAD", ""):
        extension = build()
        environment = {
            **os.environ,
            # The C++ runtime, too: the sanitizer looks for its throw before torch brings it.
            "LD_PRELOAD": f"{runtime}:{library('libstdc++.so')}",
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:detect_odr_violation=0",
            "SANITIZED_NATIVE": str(extension),
        }
        arguments = [sys.executable, "-m", "tests.conformance.sanitizer", *sys.argv[1:]]
        os.execve(sys.executable, arguments, environment)
    load(Path(os.environ["SANITIZED_NATIVE"]))
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
