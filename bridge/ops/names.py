"""MindSpore's names for the lowerings, looked up when the first operator runs on it.

MindSpore takes seconds to import and hundreds of megabytes to hold, and route auto may never need it. The
lowerings are declared without it: what they name or make at import is remembered and looked up at the first
call, which is never before MindSpore has started, as a lowering's arguments are lent to it first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mindspeed_ms.device import mindspore


def _started() -> bool:
    return mindspore.started()


class Name:
    """Something of MindSpore's. Once MindSpore has started it stands for the thing itself.

    Before that, an attribute or the result of a call is another Name: ``ag.RealDiv()`` makes the primitive
    at its first use.
    """

    def __init__(self, find: Callable[[], Any]) -> None:
        self._find = find

    def _thing(self) -> Any:
        if "_found" not in self.__dict__:
            self._found = self._find()
        return self._found

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if not _started():
            return Name(lambda: getattr(self._thing(), name))
        value = getattr(self._thing(), name)
        setattr(self, name, value)  # the next time it is an attribute like any other
        return value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = self.__dict__.get("_found")
        if found is not None:
            return found(*args, **kwargs)
        if not _started():
            return Name(lambda: self._thing()(*args, **kwargs))
        return self._thing()(*args, **kwargs)


def _module(name: str) -> Name:
    return Name(lambda: sys.modules.get(name) or import_module(name))


if TYPE_CHECKING:  # so that `ms.Tensor` is a type
    import mindspore as ms
    from mindspore import mint, ops
    from mindspore.ops import auto_generate as ag
    from mindspore.ops.auto_generate import gen_ops_prim as prim
else:
    ms = _module("mindspore")
    mint = _module("mindspore.mint")
    ops = _module("mindspore.ops")
    ag = _module("mindspore.ops.auto_generate")
    prim = _module("mindspore.ops.auto_generate.gen_ops_prim")
