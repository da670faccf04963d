"""Which overloads use the kernel of a functional operator: its own, in-place and ``out=`` ones, from the
schemas.

``aten::add.Tensor`` stands for ``add.Tensor``, ``add_.Tensor`` and ``add.out``: the arguments that are not
only written must be the functional operator's, by name and type, and every tensor written beyond them is an
output.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from mindspeed_ms import _runtime

Form = _runtime.Form


class Overload(NamedTuple):
    name: str
    """Without namespace: ``add_.Tensor``."""
    form: _runtime.Form


def _full_name(schema: torch._C.FunctionSchema) -> str:
    name = schema.name.removeprefix("aten::")
    return f"{name}.{schema.overload_name}" if schema.overload_name else name


def _signature(arguments: list[torch._C.Argument]) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in arguments]


def _written(argument: torch._C.Argument) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def overloads(name: str) -> list[Overload]:
    """Overloads that the functional operator `name` (``aten::add.Tensor``) gives a kernel to, itself first.

    Raises:
        LookupError: torch has no such operator, or it writes an argument, or it returns views of its
            arguments.
    """
    packet, _, overload = name.partition(".")
    candidates = {schema.overload_name: schema for schema in torch._C._jit_get_schemas_for_operator(packet)}
    if overload not in candidates:
        raise LookupError(
            f"torch {torch.__version__} has no operator {name}, for which a lowering is declared."
        )
    schema = candidates[overload]
    if any(argument.alias_info is not None for argument in (*schema.arguments, *schema.returns)):
        raise LookupError(f"{schema} is not functional: declare the lowering for its functional form.")
    wanted = _signature(schema.arguments)
    found = [Overload(_full_name(schema), Form.FUNCTIONAL)]
    for other in torch._C._jit_get_schemas_for_operator(packet + "_"):
        written = [argument for argument in other.arguments if _written(argument)]
        if _signature(other.arguments) == wanted and len(written) == max(len(schema.returns), 1):
            found.append(Overload(_full_name(other), Form.IN_PLACE))
    for other in candidates.values():
        inputs = [argument for argument in other.arguments if not _written(argument)]
        outputs = other.arguments[len(inputs) :]
        if outputs and all(map(_written, outputs)) and _signature(inputs) == wanted:
            found.append(Overload(_full_name(other), Form.OUT))
    return found
