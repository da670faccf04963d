"""Arrays of the three storage types for the kernels of `_native`, by numpy alone; errors against float64."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

DTYPES = ("float32", "bfloat16", "float16")
#: What of a result may be wrong, relative in L2. One correct rounding costs up to 2^-24, 2^-9 and 2^-11 of
#: each value; sums and elementary functions are float32.
LIMITS = {"float32": 2.0**-21, "bfloat16": 2.0**-8, "float16": 2.0**-11}

native = importlib.import_module("_native")


def narrow(x: Array, dtype: str) -> Array:
    """`x` rounded to nearest even, as it lies in memory: bfloat16 as uint16."""
    if dtype != "bfloat16":
        return np.ascontiguousarray(x, dtype=dtype)
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def wide(stored: Array) -> Array:
    """What is stored, in float64."""
    if stored.dtype == np.uint16:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float64)


def at(x: Array | None) -> int:
    """The address of a contiguous array; 0 for None."""
    return 0 if x is None else x.ctypes.data


def error(got: Array, exact: Array) -> float:
    """Relative L2 error; infinite for a wrong shape or a value that is not finite."""
    if got.shape != exact.shape or not np.isfinite(got).all():
        return np.inf
    return float(np.linalg.norm(got - exact) / (np.linalg.norm(exact) or 1.0))


class Case:
    """One storage type: makes arguments, takes results. Records which kernels were called."""

    def __init__(self, dtype: str, called: set[str]) -> None:
        self.dtype, self.code = dtype, native.kernels.DTYPES[dtype]
        self.random = np.random.default_rng(1234)
        self.results: list[tuple[str, float, float]] = []
        self._called = called

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """The kernel `name`."""
        self._called.add(name)
        kernel: Callable[..., Any] = getattr(native.kernels, name)
        return kernel

    def normal(self, *shape: int, scale: float = 1.0, dtype: str = "") -> tuple[Array, Array]:
        """Normal values as stored, and the same in float64."""
        stored = narrow(self.random.standard_normal(shape) * scale, dtype or self.dtype)
        return stored, wide(stored)

    def narrow(self, x: Array) -> Array:
        """`x` as it is stored."""
        return narrow(x, self.dtype)

    def empty(self, *shape: int, dtype: str = "") -> Array:
        """What a kernel fills: NaN at first."""
        return narrow(np.full(shape, np.nan), dtype or self.dtype)

    def check(self, what: str, got: Array, exact: Array, precision: str = "") -> None:
        """`got`, as stored, is as precise as its own type, or the one named. Integers are exact."""
        kind = precision or ("bfloat16" if got.dtype == np.uint16 else str(got.dtype))
        limit = LIMITS.get(kind, 0.0)
        self.results.append((what, error(wide(got), np.asarray(exact, dtype=np.float64)), limit))
