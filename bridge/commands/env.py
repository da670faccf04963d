"""``mindspeed-ms env``: every variable of the environment that counts, its value and where it comes from."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping

from mindspeed_ms.config import settings

HELP = "each variable of the environment that counts: value, origin, meaning"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``env``."""
    parser.add_argument("--markdown", action="store_true", help="the table of README.md instead")


def rows(environment: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Name, value and origin (``environment``, ``default`` or what is wrong) of each variable."""
    for setting in settings.TABLE:
        try:
            setting.read(environment)
        except ValueError:
            yield setting.name, environment[setting.name], f"WRONG: give it {setting.offer()}"
        else:
            origin = setting.origin(environment)
            shown = environment[setting.name] if origin == "environment" else settings.shown_default(setting)
            yield setting.name, shown, origin
    for name in settings.LAUNCH:
        found = environment.get(name)
        yield name, found or "not set", "environment" if found else "default"


def execute(options: argparse.Namespace) -> int:
    """Print the table; 1 if a variable has a value that is not possible, or does not exist."""
    if options.markdown:
        print(settings.markdown())
        return 0
    meanings = {setting.name: setting.meaning for setting in settings.TABLE} | settings.LAUNCH
    print(f"{'variable':<32} {'value':<32} {'origin':<12} meaning")
    for name, value, origin in rows(os.environ):
        print(f"{name:<32} {value:<32} {origin:<12} {meanings[name]}")
    try:
        settings.check(os.environ)
    except ValueError as error:
        print(error)
        return 1
    return 0
