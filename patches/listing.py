"""``mindspeed-ms patches``: every patch and stand-in, and what became of it here."""

from __future__ import annotations

import importlib

from mindspeed_ms.config import compat
from mindspeed_ms.patches import registry, stand_ins

WRONG = (registry.State.MISSING, registry.State.REFUSED)
"""States of a patch whose target the installed release does not have as the patch knows it."""


def misfits() -> list[registry.Record]:
    """The patches, of those applied or refused by now, that do not fit what is installed."""
    return [record for record in registry.load().records() if record.state in WRONG]


def show() -> int:
    """Import every module that is patched, print the tables; 1 if a patch did not fit, else 0."""
    records = registry.load().records()
    absent = []
    for module in sorted({record.patch.module for record in records}):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            absent.append(f"{module} cannot be imported here: {error}")
    for name in sorted({record.patch.package for record in records}):
        where = ", ".join(importlib.import_module(name).__path__)
        print(f"{compat.package(name).distribution} {registry.package_version(name)} in {where}")
    print("", registry.default.table(), "", stand_ins.table(), *absent, sep="\n")
    return 1 if misfits() else 0
