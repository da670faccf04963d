"""Cross-compiles the extensions for aarch64 and runs Python there: ``python -m tests.aarch64.build``.

This project's setup.py runs as on an aarch64 host: the settings of the root's Python stand in for this one's.
Nothing of the compile line is repeated here, so what compiles here is what a Kunpeng host compiles.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
TRIPLET = "aarch64-linux-gnu"
EMULATOR = "qemu-aarch64-static"
#: The name under which Python imports what it was configured with.
_SYSCONFIG = f"_sysconfigdata__{TRIPLET}"
#: setup.py's own build_ext, of one extension.
_BUILD = """
import sys
from setuptools.dist import Distribution
import distutils.core
name, where = sys.argv[1:]
sys.argv = ["setup.py", "--quiet"]
made = distutils.core.run_setup("setup.py", stop_after="commandline")
made.ext_modules = [each for each in made.ext_modules if each.name.endswith("." + name)]
command = made.get_command_obj("build_ext")
command.build_temp, command.build_lib = f"{where}/{name}", where
made.run_command("build_ext")
"""


class Unavailable(RuntimeError):
    """Something is missing for aarch64 here, with the reason."""


def cache() -> Path:
    """The folder of the root and of what is built, outside the repository."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "mindspeed_ms_aarch64"


def root() -> Path:
    """Debian's arm64 packages, unpacked by root.sh: ``AARCH64_ROOT``, or ``root`` in the cache."""
    where = Path(os.environ.get("AARCH64_ROOT") or cache() / "root")
    if not list(where.glob(f"usr/lib/python3.*/{_SYSCONFIG}.py")):
        raise Unavailable(f"no aarch64 Python under {where}: run tests/aarch64/root.sh {where}")
    return where


def site() -> Path:
    """Further aarch64 packages, torch among them, as the README gets them: ``AARCH64_SITE``, or ``site``."""
    return Path(os.environ.get("AARCH64_SITE") or cache() / "site")


def require(*tools: str) -> None:
    """Raises Unavailable for the first of `tools` that is not on the PATH."""
    for tool in tools:
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not on the PATH: see tests/aarch64/README.md")


def _environment(scratch: Path) -> Mapping[str, str]:
    settings = next(root().glob(f"usr/lib/python3.*/{_SYSCONFIG}.py"))
    # Alone in its folder: the rest of that folder is another build of the standard library.
    scratch.mkdir(parents=True, exist_ok=True)
    shutil.copy(settings, scratch)
    headers = root() / "usr/include" / settings.parent.name
    return {
        **os.environ,
        "PYTHONPATH": str(scratch),
        "_PYTHON_SYSCONFIGDATA_NAME": _SYSCONFIG,
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",
        "CC": f"{TRIPLET}-gcc",
        "CXX": f"{TRIPLET}-g++",
        # pyconfig.h asks for one in a folder beside; the C library's headers are the cross compiler's.
        "CFLAGS": f"-Werror -I{headers} -idirafter {root() / 'usr/include'}",
        "LDFLAGS": f"-L{site() / 'torch/lib'}",
    }


def build(name: str = "_native", out: Path | None = None) -> Path:
    """Compiles and links one of the two extensions, one file at a time unless MAX_JOBS says otherwise.

    Args:
        name: ``_native`` or ``_runtime``, whose headers are the installed torch's: they know no machine.
        out: the folder for it, by default ``lib`` in the cache. Objects are kept there.

    Raises:
        Unavailable: no cross compiler or no root.
        RuntimeError: it does not build, or with a warning; the text is the compiler's.
    """
    require(f"{TRIPLET}-g++")
    out = out or cache() / "lib"
    environment = {"MAX_JOBS": "1", **_environment(out / "settings")}
    command = [sys.executable, "-c", _BUILD, name, str(out)]
    done = subprocess.run(command, cwd=PROJECT, env=environment, text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} does not build for aarch64:\n{done.stdout}{done.stderr}")
    return next((out / "mindspeed_ms").glob(f"{name}.*{TRIPLET}.so"))


def package(out: Path) -> Path:
    """A folder with the package as an aarch64 Python imports it: links to the sources and both extensions."""
    libraries = [build("_native", out), build("_runtime", out)]
    folder = out / "package" / "mindspeed_ms"
    folder.mkdir(parents=True, exist_ok=True)
    sources = [p for p in (PROJECT / "bridge").iterdir() if p.suffix != ".so" and p.name != "__pycache__"]
    for path in (*sources, PROJECT / "patches", *libraries):
        link = folder / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path)
    return folder.parent


def python(*paths: Path) -> tuple[list[str], dict[str, str]]:
    """The root's Python under qemu: its command and environment. It imports from `paths`, site and project.

    Raises:
        Unavailable: no qemu or no root.
    """
    require(EMULATOR)
    interpreter = min(root().glob("usr/bin/python3.[0-9]*[0-9]"))
    environment = {"PYTHONPATH": ":".join(map(str, (*paths, site(), PROJECT))), "OMP_NUM_THREADS": "1"}
    return [EMULATOR, "-L", str(root()), str(interpreter)], {**os.environ, **environment}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="_native", choices=["_native", "_runtime"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    print(build(options.name, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
