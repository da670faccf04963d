"""What computes a call: one choice for aten operators and fused kernels, and what is counted of it.

Four implementations: ``mindspore``, ``csrc`` (our own kernels on the host CPU), ``composite`` (a fused kernel
in torch operators) and ``host`` (torch's own CPU kernel of an operator). The decision itself is in C++
(csrc/aten/routes.cpp): the kernel of a lowered operator asks it, and so does :func:`choose`.
"""

from mindspeed_ms.routes.choice import (
    ROUTES,
    choose,
    current_route,
    declare,
    implementation,
    on_ascend,
    route,
    takes,
)
from mindspeed_ms.routes.coverage import counted

__all__ = [
    "ROUTES",
    "choose",
    "counted",
    "current_route",
    "declare",
    "implementation",
    "on_ascend",
    "route",
    "takes",
]
