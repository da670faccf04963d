"""A tensor and a number on target Ascend: the number is an argument of CANN's operator.

MindSpore's other forms make a tensor of it in host memory, which crosses the bus at every call. Where CANN
has no form with a number, a fill makes the tensor on the device. What CANN has as one operator rounds once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mindspeed_ms.ops.names import mint, ms


def filled(number: float, like: ms.Tensor) -> ms.Tensor:
    """A tensor of no dimensions, made on the device."""
    return mint.full((), number, dtype=like.dtype)


def tensors(x: Any, y: Any) -> tuple[Any, Any]:
    """Both as tensors; one of them is."""
    if not isinstance(x, ms.Tensor):
        return filled(x, y), y
    return x, y if isinstance(y, ms.Tensor) else filled(y, x)


def binary(function: Callable[..., Any], *, number: bool = False) -> Callable[..., Any]:
    """`function` of two, either of which may be a number; `number`: it takes one as its second argument."""

    def kernel(x: Any, y: Any) -> Any:
        return function(x, y) if number and isinstance(x, ms.Tensor) else function(*tensors(x, y))

    return kernel
