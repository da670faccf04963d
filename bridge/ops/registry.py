"""The table of lowerings: one row for each aten operator that MindSpore or csrc computes.

A row says which kernel computes the operator on each target and in which dtypes, what is wrong with it there
(fences), and a sample call that meets it: calibration measures it, tests hold it against float64.

A kernel is a function of all arguments of the functional operator's schema, in order. Route mindspore lends
npu tensors as ``ms.Tensor``; dtypes come as ``torch.dtype``, lists of numbers as Python lists, host scalars
as Python numbers. It returns fresh tensors of torch's result dtype, one per return of the schema, or
``NotImplemented`` for arguments that it does not take, which then run on the host route. In-place and
``out=`` overloads are derived (:mod:`.schemas`); the C++ kernel (csrc/aten/lowering_kernel.cpp) writes their
results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from mindspeed_ms import _runtime
from mindspeed_ms.ops import schemas

Dtypes = tuple[torch.dtype, ...]

FLOATS = (torch.float32, torch.float16, torch.float64)
INTS = (torch.int64, torch.int32)
BOOL = (torch.bool,)
NUMBERS = FLOATS + INTS
ALL = NUMBERS + BOOL
ASCEND_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""What Ascend computes in; it has no float64."""
ASCEND_NUMBERS = ASCEND_FLOATS + INTS
ASCEND_ALL = ASCEND_NUMBERS + BOOL
NATIVE = (torch.float32, torch.bfloat16, torch.float16)
"""What csrc's kernels compute in."""
F32 = (torch.float32,)


class Inputs(NamedTuple):
    """What a sample call is made of: square matrices of one side, `x`, `y`, `p` of the row's dtype."""

    x: torch.Tensor
    """Normal; integers from 1 to 6; bools."""
    y: torch.Tensor
    """As `x`."""
    p: torch.Tensor
    """0.1 to 1.1; integers and bools as `x`."""
    i: torch.Tensor
    """int64, 0 to 7."""

    @property
    def mask(self) -> torch.Tensor:
        """bool."""
        return self.i > 3


def inputs(side: int, dtype: torch.dtype) -> Inputs:
    """Inputs on the CPU; the same for the same arguments."""
    generator = torch.Generator().manual_seed(side)
    if dtype.is_floating_point:
        x, y = (torch.randn(side, side, generator=generator).to(dtype) for _ in range(2))
        p = (torch.rand(side, side, generator=generator) + 0.1).to(dtype)
    else:
        x, y, p = (torch.randint(1, 7, (side, side), generator=generator) for _ in range(3))
        x, y, p = (t > 3 if dtype == torch.bool else t.to(dtype) for t in (x, y, p))
    return Inputs(x, y, p, torch.randint(0, 8, (side, side), generator=generator))


def inputs_between(low: float, high: float, side: int, dtype: torch.dtype) -> Inputs:
    """Inputs whose `x` runs from `low` to `high`; `y` is `x` with its rows turned, `p` its magnitude."""
    x = torch.linspace(low, high, side * side, dtype=torch.float64).view(side, side)
    return Inputs(x.to(dtype), x.flip(0).to(dtype), x.abs().to(dtype), inputs(side, dtype).i)


Sample = Callable[[Inputs], Any]


class Fence(NamedTuple):
    """What is wrong with a kernel in some dtypes, in release `version` of MindSpore.

    The symptom shows where the sample's `x` (and `p`, its magnitude) runs over `at`; a test holds it there.

    With an `error` (relative to the largest result) it is right to that, which is more than torch's: route
    auto never takes it. Without one its results are wrong: no route does.
    """

    symptom: str
    dtypes: Dtypes
    at: tuple[float, float]
    error: float | None = None
    version: str = "2.10.0"


@dataclass(frozen=True)
class Kernel:
    """What computes an operator: `function`, right in `dtypes` (of the deciding tensor) but for `fences`."""

    function: Callable[..., Any]
    dtypes: Dtypes
    fences: tuple[Fence, ...] = ()
    in_place: Callable[..., Any] | None = None
    """Writes its first argument, which is contiguous and as large as the result, where it lies."""
    widens: bool = False
    """Reads 16-bit tensors beside a float32 one at ``key_arg`` as they are; MindSpore's only in place."""

    @property
    def usable(self) -> Dtypes:
        """Dtypes in which it is not wrong."""
        wrong = {dtype for fence in self.fences if fence.error is None for dtype in fence.dtypes}
        return tuple(dtype for dtype in self.dtypes if dtype not in wrong)

    def error(self, dtype: torch.dtype) -> float | None:
        """How far it is off in `dtype` where that is more than rounding; None where it is exact."""
        return max((f.error for f in self.fences if f.error and dtype in f.dtypes), default=None)


@dataclass
class Row:
    """One functional operator; see :func:`row` for the fields."""

    name: str
    sample: Sample
    overloads: list[schemas.Overload]
    cpu: Kernel | None
    ascend: Kernel | None
    csrc: Kernel | None
    key_arg: int
    mixed: bool
    promotes: bool
    strided: bool
    sums: bool
    joins: bool
    handle: Any = field(default=None, repr=False)
    """The registered ``_runtime.Lowering``, None before :func:`register_all`."""

    @property
    def mindspore(self) -> Kernel | None:
        """MindSpore's kernel on this process's target."""
        return self.ascend if _runtime.on_ascend() else self.cpu

    def kernels(self) -> dict[str, Kernel]:
        """Route -> kernel on this process's target; csrc's take addresses, which Ascend's memory has not."""
        offers = {"mindspore": self.mindspore, "csrc": None if _runtime.opaque_memory() else self.csrc}
        return {route: kernel for route, kernel in offers.items() if kernel is not None}

    def routes(self, dtype: torch.dtype) -> tuple[str, ...]:
        """Routes that may take a call of this dtype; host always may."""
        return (*(route for route, kernel in self.kernels().items() if dtype in kernel.usable), "host")


NOT_DIFFERENTIABLE = frozenset(("aten::isfinite", "aten::isclose"))
"""Composites that may be lowered whole, because their results are bool."""

FILLS = frozenset(("fill_.Scalar", "zero_"))
"""On Ascend csrc/aten/copies.cpp fills memory where it lies, through any strides."""

table: dict[str, Row] = {}
"""Functional operator (``aten::add.Tensor``) -> its row."""


def row(
    name: str,
    sample: Sample,
    *,
    cpu: Kernel | None = None,
    ascend: Kernel | None = None,
    csrc: Kernel | None = None,
    key_arg: int = 0,
    mixed: bool = False,
    promotes: bool = False,
    strided: bool = False,
    sums: bool = False,
    joins: bool = False,
) -> None:
    """Enters the row of functional operator `name`.

    Args:
        sample: a call that meets the operator.
        cpu: MindSpore's kernel on the CPU target.
        ascend: its kernel on Ascend; by default that of `cpu`, in its dtypes without float64, and with
            bfloat16 where there are floating ones.
        csrc: ours, for memory that the CPU reads.
        key_arg: index of the tensor argument whose dtype decides.
        mixed: other tensor arguments may have other dtypes (indices, masks).
        promotes: tensors from `key_arg` on are cast to torch's common dtype first, which is then the deciding
            one.
        strided: MindSpore's kernel reads transposed views as they are; others are lent contiguous tensors.
        sums: over a dimension without elements the result is zeros, for which no kernel is asked.
        joins: tensors without elements are left out of its list of tensors.

    Raises:
        LookupError: torch has no such functional operator.
        ValueError: it has a row already or no kernel, or a lowering would lose its gradient.
    """
    if name in table:
        raise ValueError(f"{name} has two lowerings; remove one.")
    if name not in NOT_DIFFERENTIABLE and _differentiated_by_parts(name):
        raise ValueError(f"{name} gets its gradient from the operators it is composed of; lower those.")
    if cpu is ascend is csrc is None:
        raise ValueError(f"{name} has a row without a kernel; give it one or remove it.")
    if ascend is None and cpu is not None:
        ascend = Kernel(cpu.function, _on_ascend(cpu.dtypes))
    options = (key_arg, mixed, promotes, strided, sums, joins)
    table[name] = Row(name, sample, schemas.overloads(name), cpu, ascend, csrc, *options)


def _on_ascend(dtypes: Dtypes) -> Dtypes:
    floats = ASCEND_FLOATS if any(d.is_floating_point for d in dtypes) else ()
    return (*floats, *(d for d in dtypes if not d.is_floating_point))


def _differentiated_by_parts(name: str) -> bool:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return has_kernel(name, "CompositeImplicitAutograd") and not has_kernel(name, "Autograd")


def register_all() -> None:
    """Registers the table with torch's dispatcher. Once per process."""
    for entry in table.values():
        mindspore, csrc = entry.mindspore, entry.csrc
        if mindspore is None and "csrc" not in entry.kernels():
            continue  # a kernel of the other target; torch's composite, or what copies on the device, runs
        entry.handle = _runtime.Lowering(
            entry.name,
            mindspore=mindspore.function if mindspore else None,
            mindspore_dtypes=mindspore.usable if mindspore else (),
            csrc=csrc.function if csrc else None,
            csrc_dtypes=csrc.usable if csrc else (),
            key_arg=entry.key_arg,
            mixed=entry.mixed,
            promotes=entry.promotes,
            strided=entry.strided,
            mindspore_in_place=mindspore.in_place if mindspore else None,
            csrc_in_place=csrc.in_place if csrc else None,
            mindspore_widens=mindspore.widens if mindspore else False,
            csrc_widens=csrc.widens if csrc else False,
            sums=entry.sums,
            joins=entry.joins,
        )
        for overload in entry.overloads:
            if overload.name in FILLS and _runtime.opaque_memory():
                continue
            _runtime.register_lowering(overload.name, entry.handle, overload.form)
