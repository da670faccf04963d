"""The table of lowerings: which MindSpore or csrc kernel computes an aten operator, for which dtypes.

A lowering is a function of all arguments of the functional operator's schema, in order. Route mindspore lends
npu tensors as ``ms.Tensor``; dtypes come as ``torch.dtype``, lists of numbers as Python lists, host scalars
as Python numbers. It returns fresh tensors of torch's result dtype, one per return of the schema, or
``NotImplemented`` for arguments that it does not take, which then run on the host route. In-place and
``out=`` overloads are derived (:mod:`.schemas`); the C++ kernel (csrc/aten/lowering_kernel.cpp) writes their
results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from mindspeed_ms import _runtime
from mindspeed_ms.ops import schemas

FLOATS = (torch.float32, torch.float16, torch.float64)
INTS = (torch.int64, torch.int32)
BOOL = (torch.bool,)
ALL = FLOATS + INTS + BOOL
ASCEND_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""What Ascend computes in; it has no float64."""


@dataclass
class Lowering:
    """One functional operator's kernels; see :func:`lowering` for the fields."""

    name: str
    overloads: list[schemas.Overload]
    mindspore: Callable[..., Any] | None = None
    mindspore_dtypes: tuple[torch.dtype, ...] = ()
    """Of MindSpore's CPU backend."""
    ascend: Callable[..., Any] | None = None
    """MindSpore's kernel on Ascend where that is another than on CPU (:func:`on_ascend`)."""
    ascend_dtypes: tuple[torch.dtype, ...] | None = None
    """By default those of CPU without float64, and with bfloat16 where there are floating types."""
    csrc: Callable[..., Any] | None = None
    csrc_dtypes: tuple[torch.dtype, ...] = ()
    csrc_in_place: Callable[..., Any] | None = None
    """Writes its first argument, which is contiguous, where it lies."""
    csrc_widens: bool = False
    """Its csrc kernels read 16-bit tensors beside a float32 one at ``key_arg`` as they are."""
    key_arg: int = 0
    mixed: bool = False
    promotes: bool = False
    strided: bool = False
    handle: Any = field(default=None, repr=False)
    """The registered ``_runtime.Lowering``, None before :func:`register_all`."""

    def of_target(self) -> tuple[Callable[..., Any] | None, tuple[torch.dtype, ...]]:
        """MindSpore's kernel on this process's target, and its dtypes."""
        if not _runtime.on_ascend():
            return self.mindspore, self.mindspore_dtypes
        dtypes = self.ascend_dtypes
        if dtypes is None:
            floats = any(d.is_floating_point for d in self.mindspore_dtypes)
            rest = (d for d in self.mindspore_dtypes if d not in (torch.float64, *ASCEND_FLOATS))
            dtypes = (*(ASCEND_FLOATS if floats else ()), *rest)
        return self.ascend or self.mindspore, dtypes

    def routes(self, dtype: torch.dtype) -> tuple[str, ...]:
        """Routes that may take a call of this dtype; host always may."""
        has = (("mindspore", self.of_target()[1]), ("csrc", self.csrc_dtypes), ("host", (dtype,)))
        return tuple(route for route, dtypes in has if dtype in dtypes)


NOT_DIFFERENTIABLE = frozenset(("aten::isfinite", "aten::isclose"))
"""Composites that may be lowered whole, because their results are bool."""

table: dict[str, Lowering] = {}
"""Functional operator (``aten::add.Tensor``) -> its lowering."""


def declare(name: str, function: Callable[..., Any], dtypes: Iterable[torch.dtype], **options: Any) -> None:
    """Enters `function` as the MindSpore kernel of operator `name`; `options` as for :func:`lowering`.

    Raises:
        LookupError: torch has no such functional operator.
        ValueError: it has a lowering already, or a lowering would lose its gradient.
    """
    if name in table:
        raise ValueError(f"{name} has two lowerings; remove one.")
    if name not in NOT_DIFFERENTIABLE and _differentiated_by_parts(name):
        raise ValueError(f"{name} gets its gradient from the operators it is composed of; lower those.")
    table[name] = Lowering(
        name, schemas.overloads(name), mindspore=function, mindspore_dtypes=tuple(dtypes), **options
    )


def _differentiated_by_parts(name: str) -> bool:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return has_kernel(name, "CompositeImplicitAutograd") and not has_kernel(name, "Autograd")


def lowering(*names: str, dtypes: Iterable[torch.dtype], **options: Any) -> Callable[[Callable], Callable]:
    """Decorator: the function is the MindSpore kernel of the functional aten operators `names`.

    Args:
        dtypes: of the deciding tensor, for which MindSpore's kernel is right.
        key_arg: index of the deciding tensor argument (default 0).
        mixed: other tensor arguments may have other dtypes (indices, masks).
        promotes: tensors from `key_arg` on are cast to torch's common dtype first, which is then the deciding
            one.
        strided: the kernel reads transposed views as they are; others are lent contiguous tensors.
    """

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            declare(name, function, dtypes, **options)
        return function

    return enter


def on_ascend(
    *names: str, dtypes: Iterable[torch.dtype] = ASCEND_FLOATS, **options: Any
) -> Callable[[Callable], Callable]:
    """Decorator: the function is MindSpore's kernel of `names` on Ascend; on CPU there is another, or none.

    Args:
        dtypes: of the deciding tensor.
        options: as for :func:`lowering`, where CPU has no kernel; else they are those of its row.
    """

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            if name not in table:
                table[name] = Lowering(name, schemas.overloads(name), **options)
            table[name].ascend, table[name].ascend_dtypes = function, tuple(dtypes)
        return function

    return enter


def register_all() -> None:
    """Registers the table with torch's dispatcher. Once per process."""
    for entry in table.values():
        mindspore, dtypes = entry.of_target()
        if mindspore is None and entry.csrc is None:
            continue  # a kernel of the other target
        if mindspore is None and _runtime.opaque_memory():
            continue  # csrc kernels take addresses; torch's composite, or what copies on the device, runs
        entry.handle = _runtime.Lowering(
            entry.name,
            mindspore=mindspore,
            mindspore_dtypes=dtypes,
            csrc=entry.csrc,
            csrc_dtypes=entry.csrc_dtypes,
            key_arg=entry.key_arg,
            mixed=entry.mixed,
            promotes=entry.promotes,
            strided=entry.strided,
            csrc_in_place=entry.csrc_in_place,
            csrc_widens=entry.csrc_widens,
        )
        for overload in entry.overloads:
            _runtime.register_lowering(overload.name, entry.handle, overload.form)
