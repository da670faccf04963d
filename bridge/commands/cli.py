"""The command ``mindspeed-ms``: its parser, over one module per command.

A module of a command has ``HELP`` (a line), ``add_arguments(parser)`` and ``execute(options)``, which returns
the exit status and raises CommandError for what its user can put right.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from mindspeed_ms import __version__
from mindspeed_ms.commands import (
    calibrate,
    convert,
    coverage,
    doctor,
    env,
    generate,
    patches,
    plot,
    run,
    selftest,
)
from mindspeed_ms.commands.errors import CommandError

COMMANDS = {
    "run": run,
    "plot": plot,
    "generate": generate,
    "doctor": doctor,
    "selftest": selftest,
    "calibrate": calibrate,
    "convert": convert,
    "coverage": coverage,
    "patches": patches,
    "env": env,
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without a usage block around it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} ({self.prog} --help shows more)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mindspeed-ms", description="Stock Megatron-LM scripts on MindSpore.")
    parser.add_argument("--version", action="version", version=__version__)
    names = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(names.add_parser(name, help=command.HELP))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``mindspeed-ms``; returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        status = COMMANDS[options.command].execute(options)
        if options.command != "run":  # a script's output is its own
            sys.stdout.flush()
        return status
    except CommandError as error:
        print(f"mindspeed-ms {options.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        if options.command == "run":
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at exit
        return 1
