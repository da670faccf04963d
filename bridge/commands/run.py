"""``mindspeed-ms run SCRIPT ...``: run a script that knows nothing of us.

Under a launcher: ``torchrun --nproc-per-node 2 -m mindspeed_ms.run pretrain_gpt.py ...``.
"""

from __future__ import annotations

import argparse
import atexit
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mindspeed_ms.commands.errors import CommandError
from mindspeed_ms.config import launch, settings

HELP = "run a script with the bridge on, none of its lines edited"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``run``; whatever follows SCRIPT belongs to the script."""
    parser.add_argument(
        "--coverage", metavar="FILE", help="write calls and times per operator and route there"
    )
    parser.add_argument("--log-dir", metavar="DIR", help="also write each rank's output to DIR/rank<N>.log")
    parser.add_argument("script", help="the Python script to run")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="its arguments, handed on as they are")


def execute(options: argparse.Namespace) -> int:
    """Run ``options.script`` as ``__main__`` with the bridge on. Raises CommandError if there is none.

    The script sees the ``sys.argv`` and ``sys.path[0]`` that ``python SCRIPT ARGS`` gives it; its exceptions
    and exit status pass through.
    """
    script = Path(options.script)
    if not script.is_file():
        what = "is a folder" if script.is_dir() else "does not exist"
        raise CommandError(f"the script {options.script} {what} (looked from {Path.cwd()})")
    if options.log_dir:
        _copy_output_to(Path(options.log_dir), int(os.environ.get("RANK", "0")))
    if options.coverage:
        settings.COVERAGE.hand_on(os.path.abspath(options.coverage))
    be_a_group_of_one()
    launch.set_threads()

    # Programs that the script starts are written for CUDA, too.
    settings.AUTOLOAD.hand_on("1")

    import mindspeed_ms.patch  # noqa: F401

    sys.argv = [options.script, *options.args]
    sys.path[0] = str(script.resolve().parent)
    runpy.run_path(options.script, run_name="__main__")
    return 0


def be_a_group_of_one() -> None:
    """Without a launcher, give torch.distributed's ``env://`` the variables that torchrun would set for one
    rank.
    """
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
    for name, value in {**alone, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        os.environ.setdefault(name, str(value))


def _copy_output_to(folder: Path, rank: int) -> None:
    """Send stdout and stderr, of native code too, to ``folder/rank<rank>.log`` and where they went."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"rank{rank}.log"
    log.write_bytes(b"")
    outputs: list[Any] = [sys.stdout, sys.stderr]  # what Python types too loosely to reconfigure
    streams = []
    for stream in outputs:
        before = os.dup(stream.fileno())
        # A process of its own outlives a crash of this one, and -i keeps it through Ctrl-C: no output is
        # lost.
        reads, writes = os.pipe()
        tee = subprocess.Popen(["tee", "-i", "-a", str(log)], stdin=reads, stdout=before)
        os.close(reads)
        os.dup2(writes, stream.fileno())
        os.close(writes)
        stream.reconfigure(line_buffering=True)
        streams.append((stream, before, tee))

    def finish() -> None:
        for stream, before, tee in streams:
            stream.flush()
            os.dup2(before, stream.fileno())
            with suppress(subprocess.TimeoutExpired):  # a child of the script may hold the pipe
                tee.wait(timeout=10)

    atexit.register(finish)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m mindspeed_ms.run``."""
    parser = argparse.ArgumentParser(
        prog="python -m mindspeed_ms.run", description="Run a script on MindSpore."
    )
    add_arguments(parser)
    try:
        return execute(parser.parse_args(argv))
    except CommandError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
