"""Turns dataclasses into command line flags, and a wrong flag into one helpful sentence."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import enum
import inspect
import itertools
import os
import sys
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def layer_pattern(text: str) -> int | list[int]:
    """An int, or a list of ints written as a Python list expression: `([0]*3+[1])*2`.

    Raises ValueError for anything else; nothing but lists, ints, + and * is evaluated.
    """

    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.List):
            return [value(element) for element in node.elts]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return value(node.left) + value(node.right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            return value(node.left) * value(node.right)
        raise ValueError(f"{text!r} is neither a number nor a list expression like ([0]*3+[1])*2")

    try:
        return value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError) as error:
        raise ValueError(f"{text!r} is neither a number nor a list expression like ([0]*3+[1])*2") from error


def int_pair(text: str) -> tuple[int, int]:
    """Two ints with a comma between them, in parentheses or not."""
    first, second = text.strip("() ").split(",")
    return int(first), int(second)


def field_help(config_class: type) -> dict[str, str]:
    """First sentence of the docstring below each field of a dataclass and of its bases."""
    texts: dict[str, str] = {}
    for base in reversed(config_class.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                doc = " ".join(str(getattr(text.value, "value", "")).split())
                texts[field.target.id] = doc.split(". ")[0].replace("%", "%%")
    return texts


def value_keywords(annotation: Any) -> dict[str, Any] | None:
    """`add_argument` keywords for a field of this type; None when a command line cannot express it."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Union or type(annotation).__name__ == "UnionType":
        concrete = [a for a in inner if a is not type(None)]
        return value_keywords(concrete[0]) if len(concrete) == 1 else None
    if origin is list:
        keywords = value_keywords(inner[0])
        return None if keywords is None else {**keywords, "nargs": "+"}
    if origin is typing.Literal:
        return {"type": type(inner[0]), "choices": list(inner)}
    if annotation is torch.dtype:
        return {"type": str, "choices": list(DTYPES)}
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return {"type": str, "choices": [member.name for member in annotation]}
    if annotation in (int, float, str):
        return {"type": annotation}
    return None


def add_flags(
    parser: argparse.ArgumentParser,
    config_class: type,
    names: Mapping[str, str],
    defaults: Mapping[str, Any],
    types: Mapping[str, dict[str, Any]],
    excluded: frozenset[str],
) -> None:
    """Adds one flag per field of a dataclass to `parser`, except fields that already have one.

    A field `a_b` becomes `--a-b`. A true bool becomes `--no-a-b` and `--disable-a-b`, which turn it off.

    Args:
        names: field -> stock flag where it is not the field's own name; "!" in front: the flag turns it off.
        defaults: field -> Megatron-LM's default where the dataclass has another one.
        types: field -> `add_argument` keywords where the type alone does not say how to read it.
        excluded: fields without a flag.
    """
    hints = typing.get_type_hints(config_class)
    help_texts = field_help(config_class)
    group = parser.add_argument_group(config_class.__name__)
    taken = {action.dest for action in parser._actions}
    for field in dataclasses.fields(config_class):
        if field.name in excluded or field.name in taken or not field.init:
            continue
        default = defaults.get(field.name, field.default)
        if field.default is dataclasses.MISSING and field.name not in defaults:
            default = None
        common = {"dest": field.name, "default": default, "help": help_texts.get(field.name, "")}
        name = names.get(field.name, field.name.replace("_", "-"))
        annotation = hints[field.name]
        if annotation is bool or annotation == typing.Optional[bool]:  # noqa: UP045
            off = bool(default)
            flags = [name.lstrip("!")]
            if off and not name.startswith("!"):
                flags = [f"no-{name}", f"disable-{name}"]
            group.add_argument(*(f"--{f}" for f in flags), action=f"store_{not off}".lower(), **common)
            continue
        keywords = types.get(field.name) or value_keywords(annotation)
        if keywords is None:
            raise TypeError(
                f"{config_class.__name__}.{field.name}: {annotation} cannot be read from a command line; "
                "name it in `types` or in `excluded`"
            )
        if isinstance(default, torch.dtype):
            common["default"] = next(k for k, v in DTYPES.items() if v is default)
        elif isinstance(default, enum.Enum):
            common["default"] = default.name
        group.add_argument(f"--{name}", **common, **keywords)


class FlagParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one sentence, printed by rank 0 only, and name the nearest flag."""

    def __init__(self, refused: Callable[[str], str | None], **keywords: Any) -> None:
        """`refused`: why the recipe does not take a stock flag (without the hyphens in front), or None."""
        super().__init__(allow_abbrev=False, **keywords)
        self.refused = refused

    def error(self, message: str) -> NoReturn:
        """Prints `message` without the list of all flags and ends with exit code 2."""
        if os.environ.get("RANK", "0") == "0":
            print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(2)

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parses; an unknown flag is an error naming the nearest one, a refused flag one saying why."""
        args, rest = self.parse_known_args(argv)
        if not rest:
            return args
        name = rest[0].split("=")[0]
        if not name.startswith("--"):
            self.error(f"{name!r} belongs to no flag")
        if why := self.refused(name.lstrip("-")):
            self.error(f"{name} is not supported by this recipe: {why}")
        nearest = difflib.get_close_matches(name, self._option_string_actions, n=1, cutoff=0.0)[0]
        self.error(f"unknown flag {name}; the nearest one is {nearest}")
