"""Runs a script on the simulated CANN: ``python -m tests.cann.run [options] SCRIPT|-m MODULE ...``.

Sets the environment that MindSpore's Ascend backend and the package look for, then starts the script anew
(the loader reads its paths when a process starts). ``-m torch.distributed.run --nproc-per-node 2 SCRIPT``
starts ranks.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import build

REPOSITORY = Path(__file__).resolve().parents[2]


def environment(
    root: Path,
    *,
    asynchronous: bool = False,
    null: bool = False,
    cache: bool = False,
    devices: int | None = None,
    memory: float | None = None,
    soc: str | None = None,
    fault: str | None = None,
    base: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The environment of a process that uses the simulated CANN at ``root`` (:func:`tests.cann.build.build`).

    ``asynchronous``: a thread per stream and random delays. ``null``: kernels compute nothing. ``cache``:
    executors are kept and run again. ``devices``, ``memory`` (GB per device), ``soc``: what the device says
    of itself. ``fault``: a deliberate mistake (README.md). ``base``: the environment that is extended, by
    default this process's.
    """
    env = dict(os.environ if base is None else base)
    tbe = root / "opp/built-in/op_impl/ai_core/tbe"
    paths = [root / "python", tbe, env.get("PYTHONPATH")]
    env.update(
        ASCEND_HOME_PATH=str(root),
        ASCEND_OPP_PATH=str(root / "opp"),
        ASCEND_CUSTOM_OPP_PATH=str(root / "cust"),
        LD_LIBRARY_PATH=str(root / "lib64"),
        PYTHONPATH=os.pathsep.join(str(path) for path in paths if path),
        MINDSPEED_MS_TARGET="Ascend",
    )
    env.setdefault("GLOG_v", "3")  # MindSpore warns of a missing `te` on every start
    options = {
        "ASYNC": "1" if asynchronous else None,
        "NULL": "1" if null else None,
        "CACHE": "1" if cache else None,
        "DEVICES": devices,
        "MEMORY_GB": memory,
        "SOC": soc,
        "FAULT": fault,
    }
    env.update({f"CANNSIM_{name}": str(value) for name, value in options.items() if value is not None})
    return env


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.cann.run", description=__doc__)
    for flag, what in (
        ("async", "a thread per stream, random delays"),
        ("null", "kernels compute nothing: what is left is host time"),
        ("cache", "executors are kept and run again"),
    ):
        name = "asynchronous" if flag == "async" else flag
        parser.add_argument(f"--{flag}", dest=name, action="store_true", help=what)
    parser.add_argument("--devices", type=int, help="number of devices (default 8)")
    parser.add_argument("--memory", type=float, metavar="GB", help="memory of a device (default 64)")
    parser.add_argument("--soc", help="name of the chip (default Ascend910B2)")
    parser.add_argument("--fault", help="a deliberate mistake, see README.md")
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="a module and its arguments")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="a script and its arguments")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = vars(_parser().parse_args(arguments))
    script, module = options.pop("script"), options.pop("module")
    if not script and not module:
        _parser().error("what shall run? SCRIPT or -m MODULE is missing")
    command = ["-m", *module] if module else script
    try:
        root = build.build()
    except build.Unavailable as reason:
        print(reason, file=sys.stderr)
        return 1
    os.execve(sys.executable, [sys.executable, *command], environment(root, **options))


if __name__ == "__main__":
    sys.exit(main())
