"""Every environment variable ``MINDSPEED_MS_*``, in one table: values, default, meaning.

    >>> settings.TARGET.value
    'CPU'

A variable is read once, when its value is first asked for; :func:`check` tells at the start what is wrong
with any of them. Only the standard library is imported, as torch's autoload asks for one of them in every
process.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")
PREFIX = "MINDSPEED_MS_"


@dataclass
class Setting(Generic[T]):
    """One variable.

    Attributes:
        name: with the prefix.
        default: the value where the variable is not set or empty.
        parse: text to value; ValueError for text that is not among ``allowed``.
        allowed: what may be given, one string per choice, or one that describes it.
        meaning: one sentence.
        choices: whether ``allowed`` are the very values.
        internal: set by the package for the processes that it starts, not by people.
        stands_for: said of the default where that depends on something.
        known: the value, once it was read.
    """

    name: str
    default: T
    parse: Callable[[str], T]
    allowed: tuple[str, ...]
    meaning: str
    choices: bool = True
    internal: bool = False
    stands_for: str = ""
    known: tuple[T] | None = field(default=None, repr=False)

    @property
    def value(self) -> T:
        """The value in force. Raises ValueError, in one sentence, where the environment holds a wrong one."""
        if self.known is None:
            self.known = (self.read(os.environ),)
        return self.known[0]

    def read(self, environment: Mapping[str, str]) -> T:
        """The value that `environment` gives it; nothing is remembered. Raises as :attr:`value`."""
        text = environment.get(self.name)
        if not text:
            return self.default
        try:
            return self.parse(text)
        except ValueError:
            raise ValueError(f"{self.name}={text!r} is not possible; give it {self.offer()}") from None

    def origin(self, environment: Mapping[str, str]) -> str:
        """Where its value comes from: ``environment`` or ``default``."""
        return "environment" if environment.get(self.name) else "default"

    def offer(self) -> str:
        """What may be given, as words of a sentence."""
        *rest, last = self.allowed
        return f"{', '.join(rest)} or {last}" if rest else last

    def hand_on(self, text: str) -> None:
        """Sets it for this process and for those that this process starts. Raises as :attr:`value`."""
        self.known = (self.read({self.name: text}),)
        os.environ[self.name] = text


def _choice(name: str, allowed: tuple[str, ...], default: str, meaning: str) -> Setting[str]:
    return Setting(PREFIX + name, default, _one_of(allowed), allowed, meaning)


def _one_of(allowed: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(text)
        return text

    return parse


def _path(name: str, allowed: str, meaning: str, stands_for: str) -> Setting[Path | None]:
    return Setting(PREFIX + name, None, Path, (allowed,), meaning, choices=False, stands_for=stands_for)


def _text(name: str, allowed: str, meaning: str, stands_for: str, internal: bool = False) -> Setting[str]:
    return Setting(PREFIX + name, "", str, (allowed,), meaning, False, internal, stands_for)


def _switch(name: str, meaning: str) -> Setting[bool]:
    def parse(text: str) -> bool:
        return _one_of(("0", "1"))(text) == "1"

    return Setting(PREFIX + name, False, parse, ("0", "1"), meaning)


ROUTE = _choice(
    "ROUTE",
    ("auto", "strict", "host", "mindspore", "csrc", "composite"),
    "auto",
    "`auto`: the fastest correct kernel; `strict`: MindSpore or csrc, else an error that names the operator; "
    "`host`: torch's CPU kernels, the reference; the others: that kind wherever there is one",
)
TARGET = _choice("TARGET", ("CPU", "Ascend"), "CPU", "where MindSpore runs")
COVERAGE = _path(
    "COVERAGE", "a file", "at exit, calls and time per operator and route go there", "nothing is written"
)
SEGMENT = _choice(
    "SEGMENT",
    ("proc", "socket"),
    "proc",
    "how ranks of a host get at the memory they share: by /proc, or over a socket where that is hidden",
)
AUTOLOAD = _switch("AUTOLOAD", "switch the bridge on at `import torch`")
AUTO_ROUTES = _path(
    "AUTO_ROUTES",
    "a file",
    "the table of route `auto`, as `mindspeed-ms calibrate` measures it",
    "what was measured on this machine, else as shipped",
)
ISA = _choice(
    "ISA",
    ("auto", "portable", "avx2", "avx512", "avx512_bf16"),
    "auto",
    "the instruction set of the csrc kernels; csrc/kernels/isa.cpp reads it",
)
FLIGHT_DIR = _path(
    "FLIGHT_DIR",
    "a folder",
    "where a rank writes its last collectives when one of them fails",
    "mindspeed_ms_flight in the temporary folder",
)
HOST_ID = _text(
    "HOST_ID",
    "any name",
    "ranks of equal names share memory; for containers that cannot, though they look like one host",
    "by boot, pid and network namespace",
)
COVERAGE_CLAIMED = _text(
    "COVERAGE_CLAIMED",
    "a rank, or none",
    "the rank whose coverage report an ancestor of this process writes already",
    "no ancestor does",
    internal=True,
)

TABLE: tuple[Setting[Any], ...] = tuple(
    setting for setting in list(globals().values()) if isinstance(setting, Setting)
)
"""All of them, in the order above."""

LAUNCH = {
    "RANK": "this process's number among all, from torchrun",
    "WORLD_SIZE": "number of processes",
    "LOCAL_RANK": "this process's number on its host, and its npu device",
    "LOCAL_WORLD_SIZE": "number of processes on this host, and of npu devices that each sees",
    "MASTER_ADDR": "where rank 0 listens",
    "MASTER_PORT": "and its port",
    "TORCHELASTIC_RUN_ID": "names the run in flight records",
    "OMP_NUM_THREADS": "threads of a process; without it, the cores are shared among the processes of a host",
    "OMP_WAIT_POLICY": "PASSIVE keeps waiting threads of torch off the cores that MindSpore's need",
}
"""Variables of torchrun and OpenMP that decide how a run goes, and what for."""


def check(environment: Mapping[str, str] = os.environ) -> None:
    """Raises ValueError, in one sentence, for a wrong value and for a ``MINDSPEED_MS_*`` that is none."""
    names = [setting.name for setting in TABLE]
    for setting in TABLE:
        setting.read(environment)
    for name in environment:
        if name.startswith(PREFIX) and name not in names:
            near = difflib.get_close_matches(name, names, 1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise ValueError(
                f"{name} is no variable of mindspeed_ms: unset it ({meant}`mindspeed-ms env` lists them)"
            )


def markdown() -> str:
    """The table of README.md."""
    lines = ["| environment variable | values | default | meaning |", "|---|---|---|---|"]
    for setting in TABLE:
        if not setting.internal:
            values = ", ".join(f"`{v}`" if setting.choices else v for v in setting.allowed)
            lines.append(f"| `{setting.name}` | {values} | {shown_default(setting)} | {setting.meaning} |")
    return "\n".join(lines)


def shown_default(setting: Setting[Any]) -> str:
    """The default as people write it."""
    return setting.stands_for or ("0" if setting.default is False else str(setting.default))
