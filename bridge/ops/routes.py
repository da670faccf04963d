"""Routes: on which kernels operators run.

``auto`` takes the fastest correct one known for each operator, dtype and size; ``strict`` demands MindSpore
or csrc and raises NotImplementedError otherwise; ``host`` runs everything on torch's own CPU kernels, which
is the stock-torch reference in the same script. MINDSPEED_MS_ROUTE sets the default.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mindspeed_ms import _runtime

ROUTES = tuple(_runtime.RouteMode.__members__)


def current_route() -> str:
    """``auto``, ``strict`` or ``host``."""
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
