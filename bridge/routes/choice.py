"""The route that is set, and the choice of a fused kernel's implementation.

MINDSPEED_MS_ROUTE sets the route of the process, :func:`route` that of a block:

* ``auto``: the fastest correct implementation of each operator, dtype and size;
* ``strict``: MindSpore or csrc, else NotImplementedError;
* ``host``: torch's own CPU kernels for everything, fused kernels in torch operators: the stock-torch
  reference in the same script;
* ``mindspore``, ``csrc``, ``composite``: that implementation wherever it takes the call, else the next.
  Operators have no composite: for them that is ``auto``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from mindspeed_ms import _runtime
from mindspeed_ms.config import settings

ROUTES = tuple(_runtime.RouteMode.__members__)
Refusal = str | Callable[[], str | None] | None
NATIVE = (torch.float32, torch.bfloat16, torch.float16)
"""What fused kernels take."""


_runtime.set_default_route_mode(_runtime.RouteMode.__members__[settings.ROUTE.value])


def current_route() -> str:
    """One of :data:`ROUTES`."""
    return _runtime.route_mode().name


@contextmanager
def route(name: str) -> Iterator[None]:
    """Runs the body in route `name`, for all threads of the process (backward has threads of its own).

    Raises:
        ValueError: `name` is not a route.
    """
    if name not in ROUTES:
        raise ValueError(f"{name!r} is not a route; choose one of {', '.join(ROUTES)}.")
    previous = _runtime.exchange_route_override(int(_runtime.RouteMode.__members__[name]))
    try:
        yield
    finally:
        _runtime.exchange_route_override(previous)


def declare(
    kernel: str, *, mindspore: Iterable[torch.dtype] = (), csrc: Iterable[torch.dtype] = NATIVE
) -> None:
    """Says which dtypes the forms of a fused kernel take; without it they are csrc's alone.

    `mindspore` is for target Ascend: a fused kernel has no such form on MindSpore's CPU backend.
    """
    _runtime.declare_kernel(kernel, mindspore, csrc)


def choose(kernel: str, *tensors: torch.Tensor | None, refusal: Refusal = None) -> tuple[str, int]:
    """The implementation of this call of fused kernel `kernel`: "mindspore", "csrc" or "composite"; and why.

    The second value is the number of the reason that spoke against a better one, for
    :func:`.coverage.counted`; 0 for none.

    Args:
        tensors: those whose dtypes and memory a form must be able to read.
        refusal: why the MindSpore form does not take this call, or what computes that when it is needed.

    The composite takes what no form does: other dtypes, wrappers (a DTensor has no memory of its own), npu
    tensors on route host, and those in opaque memory on the CPU target, which has no address. On Ascend it
    warns once for each reason; ``mindspeed-ms coverage --why`` lists them.
    """
    return _runtime.choose_kernel(kernel, tensors, refusal)


def implementation(*tensors: torch.Tensor | None) -> str:
    """What :func:`choose` would say of these tensors for a kernel that has every form; counts nothing."""
    return _runtime.implementation(tensors)


def takes(*tensors: torch.Tensor | None) -> bool:
    """Whether fused kernels compute on these tensors, all of npu, and not as composites.

    What an adapter asks before it takes Megatron's place: on route host Megatron's own operators run.
    """
    npu = all(tensor is None or tensor.device.type == "npu" for tensor in tensors)
    return npu and implementation(*tensors) != "composite"


def on_ascend() -> bool:
    """Whether the device target is Ascend (MINDSPEED_MS_TARGET)."""
    return _runtime.on_ascend()
