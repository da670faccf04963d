"""MindSpore's eager calls of a stretch of a program: recorded by name, shape and dtype, made again, timed.

``Watch`` wraps MindSpore's functions and the methods of its tensors, before anybody has taken one of them.
``Recorder`` keeps what was called. What is made again needs nothing of this package: it is what the same work
costs in MindSpore alone, one call after the other, with all its code in the caches of the processor.
``Stopwatch`` times the calls where the program makes them.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pickle
import statistics
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODULES = (
    "mindspore.mint",
    "mindspore.mint.nn.functional",
    "mindspore.ops",
    "mindspore.ops.auto_generate",
    "mindspore.ops.auto_generate.gen_ops_prim",
)
PRIMITIVES = MODULES[-1]
TENSOR, PRIMITIVE = "method of a tensor", "object of a primitive"
QUESTIONS = frozenset(
    ("jit_context", "is_contiguous", "storage_offset", "stride", "data_ptr", "dim", "numel", "size")
)
"""Methods that launch nothing."""
BORDER = frozenset(("as_strided", "view_dtype", "view"))
"""Views under which this package lends torch's memory: MindSpore alone has no need of them."""

ARITHMETIC = frozenset(
    f"__{side}{name}__"
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
    for side in ("", "r", "i")
) | {f"__{name}__" for name in ("neg", "invert", "eq", "ne", "lt", "le", "gt", "ge", "getitem", "setitem")}

Call = tuple[str, str, tuple[Any, ...], dict[str, Any]]


class Watch:
    """Sees everything that is called between :meth:`start` and :meth:`stop`, outermost calls only."""

    def __init__(self) -> None:
        self._on = self._inside = False
        for name in MODULES:
            module = importlib.import_module(name)
            for attribute, value in list(vars(module).items()):
                if (
                    isinstance(value, types.FunctionType)
                    and attribute[0] != "_"
                    and attribute not in QUESTIONS
                ):
                    setattr(module, attribute, self._wrapped(name, attribute, value))
                elif isinstance(value, type) and "__call__" in vars(value) and name == PRIMITIVES:
                    value.__call__ = self._wrapped(PRIMITIVE, attribute, value.__call__)
                elif attribute.endswith("_op") and callable(value):
                    setattr(module, attribute, self._wrapped(name, attribute, value))
        tensor = importlib.import_module("mindspore").Tensor
        for attribute in dir(tensor):
            value = getattr(tensor, attribute)
            method = isinstance(value, (types.MethodDescriptorType, types.FunctionType))
            if method and attribute not in QUESTIONS and (attribute in ARITHMETIC or attribute[0] != "_"):
                setattr(tensor, attribute, self._wrapped(TENSOR, attribute, value))

    def start(self) -> None:
        """Looks from here on."""
        self._on = True

    def stop(self) -> None:
        """No longer."""
        self._on = False

    def made(
        self, module: str, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """Makes a call that is not one of :data:`BORDER`."""
        raise NotImplementedError

    def _wrapped(self, module: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function, assigned=("__name__", "__doc__"), updated=())
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._on or self._inside or name in BORDER:
                return function(*args, **kwargs)
            self._inside = True
            try:
                return self.made(module, name, function, args, kwargs)
            finally:
                self._inside = False

        return call


class Recorder(Watch):
    """Keeps the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def made(
        self, module: str, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        described = tuple(map(_described, args)), {k: _described(v) for k, v in kwargs.items()}
        self.calls.append((module, name, *described))
        return function(*args, **kwargs)


class Stopwatch(Watch):
    """Sums the time of the calling thread inside the calls, without that of reading the clock."""

    def __init__(self) -> None:
        super().__init__()
        self._nanoseconds = self._calls = 0
        reads = []
        for _ in range(1000):
            self._nanoseconds = 0
            self.made("", "", int, (), {})
            reads.append(self._nanoseconds)
        self._read = statistics.median(reads)

    def start(self) -> None:
        self._nanoseconds = self._calls = 0
        super().start()

    def made(
        self, module: str, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        self._calls += 1
        before = time.thread_time_ns()
        try:
            return function(*args, **kwargs)
        finally:
            self._nanoseconds += time.thread_time_ns() - before

    def seconds(self) -> float:
        """Of the calls since the start."""
        return (self._nanoseconds - self._calls * self._read) * 1e-9


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the device, or one of the host with its ``value``."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    value: Any = None


@dataclass(frozen=True)
class _Dtype:
    name: str


@dataclass(frozen=True)
class _Made:
    """A primitive of this class, made with these options."""

    primitive: str
    options: tuple[Any, ...]


def _options(primitive: type) -> list[str]:
    return list(inspect.signature(primitive.__init__).parameters)[1:]


def _described(value: Any) -> Any:
    import mindspore as ms

    if isinstance(value, ms.Tensor):
        on_host = value.asnumpy() if value.device == "CPU" else None
        return _Tensor(tuple(value.shape), tuple(value.stride()), str(value.dtype), on_host)
    if isinstance(value, (list, tuple)):
        return tuple(map(_described, value))
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, ms.ops.Primitive):
        return _Made(type(value).__name__, tuple(getattr(value, name) for name in _options(type(value))))
    if isinstance(value, ms.dtype.Type):
        return _Dtype(str(value))
    raise TypeError(f"a call with {type(value)} cannot be made again")


def _dtype(name: str) -> Any:
    import mindspore as ms

    return ms.bool_ if name == "Bool" else getattr(ms, name.lower())


def save(calls: list[Call], path: Path) -> None:
    """Writes them for :func:`replay`."""
    path.write_bytes(pickle.dumps(calls))


def replay(path: Path) -> tuple[Callable[[], None], int]:
    """A function that makes the calls of ``path`` again, on tensors made here, and their number."""
    import mindspore as ms
    from mindspore import mint
    from mindspore.ops import auto_generate

    made: dict[_Tensor, Any] = {}

    def tensor(of: _Tensor) -> Any:
        if of.value is not None:
            return ms.Tensor(of.value, _dtype(of.dtype))
        if of not in made:
            span = 1 + sum((n - 1) * s for n, s in zip(of.shape, of.strides, strict=True))
            flat = mint.zeros((max(span, 1),), dtype=_dtype(of.dtype))
            made[of] = auto_generate.as_strided(flat, of.shape, of.strides, 0)
        return made[of]

    def value(of: Any) -> Any:
        if isinstance(of, _Tensor):
            return tensor(of)
        if isinstance(of, _Dtype):
            return _dtype(of.name)
        if isinstance(of, _Made):
            return getattr(importlib.import_module(PRIMITIVES), of.primitive)(*of.options)
        return tuple(map(value, of)) if isinstance(of, tuple) else of

    calls = []
    for module, name, described, options in pickle.loads(path.read_bytes()):
        args, kwargs = value(described), {k: value(v) for k, v in options.items()}
        if module == PRIMITIVE:
            function, args = args[0], args[1:]
        else:
            function = getattr(ms.Tensor if module == TENSOR else importlib.import_module(module), name)
        calls.append((function, args, kwargs))

    def run() -> None:
        for function, args, kwargs in calls:
            function(*args, **kwargs)

    return run, len(calls)
