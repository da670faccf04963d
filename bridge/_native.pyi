"""csrc/kernels and csrc/comm: a type checker knows that their names exist, and no more."""

from typing import Any

def __getattr__(name: str) -> Any: ...
