"""The packages that this one stands on or changes, and their releases: the one place that says which.

Only the standard library is imported: setup.py runs this file to know what to ask pip for.
"""

from __future__ import annotations

from dataclasses import dataclass

PYTHON = ">=3.10,<3.13"
"""Versions of Python that the package runs on (PEP 440 specifier)."""


@dataclass(frozen=True)
class Package:
    """A package by its import name (the key of ``PACKAGES``).

    ``distribution``: its name on PyPI. ``supported``: PEP 440 specifier, empty for any. ``verified``: the
    releases that patch targets are verified against. ``version_module``: whose ``__version__`` tells what is
    installed, where that is not the package itself.
    """

    distribution: str
    supported: str = ""
    verified: tuple[str, ...] = ()
    version_module: str = ""


PACKAGES = {
    "torch": Package("torch", "==2.13.*", ("2.13.0",)),
    "mindspore": Package("mindspore", "==2.10.*"),
    "megatron": Package(
        "megatron-core",
        ">=0.12,<0.17",
        (
            *("0.12.0", "0.12.1", "0.12.2", "0.12.3", "0.13.0", "0.13.1", "0.14.0"),
            *("0.15.0", "0.15.1", "0.15.2", "0.15.3", "0.16.0", "0.16.1"),
        ),
        "megatron.core.package_info",
    ),
    "numpy": Package("numpy", "<2"),
}


def package(name: str) -> Package:
    """What is known of the package with the import name ``name``; any release of one not listed will do."""
    return PACKAGES.get(name) or Package(name)


def requirements() -> dict[str, str]:
    """Distribution -> specifier of what pip has to install beside Python."""
    return {p.distribution: p.supported for p in PACKAGES.values()}
