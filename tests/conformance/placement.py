"""Equal copies of a program's arguments on a device: values, strides, offsets and shared memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.testing._internal.opinfo.core import SampleInput
from torch.utils._pytree import tree_flatten, tree_map


class Placement:
    """Copies trees of CPU tensors to `device`; tensors that share memory share it in the copy, too."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._memory: dict[int, torch.Tensor] = {}

    def tree(self, tree: Any) -> Any:
        """`tree` with every tensor copied and every mention of device cpu replaced."""
        return tree_map(self._leaf, tree)

    def tensor(self, t: torch.Tensor) -> torch.Tensor:
        """Leaf tensor equal to `t`, with its strides and offset."""
        if t.layout is not torch.strided:
            return t.detach().clone().to(self.device).requires_grad_(t.requires_grad)
        with torch.no_grad():
            if t.is_conj():
                copy = self.tensor(t.conj()).conj()
            elif t.is_neg():
                copy = torch._neg_view(self.tensor(torch._neg_view(t)))
            else:
                memory = self._bytes(t.untyped_storage())
                copy = torch.empty(0, dtype=t.dtype, device=self.device)
                copy.set_(memory.untyped_storage(), t.storage_offset(), t.size(), t.stride())
        return copy.requires_grad_(t.requires_grad)

    def _bytes(self, storage: torch.UntypedStorage) -> torch.Tensor:
        if storage._cdata not in self._memory:
            content = torch.empty(0, dtype=torch.uint8).set_(storage)
            self._memory[storage._cdata] = content.clone().to(self.device)
        return self._memory[storage._cdata]

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.tensor(value)
        # The database offers device cuda where there is one: the bridge makes it so, for the CPU run, too.
        if isinstance(value, torch.device) or value in ("cpu", "cuda"):
            return torch.device(self.device)
        return value


class Arguments:
    """What one call of an operator gets, on one device."""

    def __init__(self, sample: SampleInput, device: str) -> None:
        self.device = device
        place = Placement(device)
        self.input, self.args, self.kwargs = place.tree((sample.input, sample.args, dict(sample.kwargs)))

    def tensors(self) -> list[torch.Tensor]:
        return tensors_of((self.input, self.args, self.kwargs))


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """The tensors of a tree, in order."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def sharing(outputs: Iterable[torch.Tensor], inputs: Iterable[torch.Tensor]) -> list[tuple]:
    """For each output that shares memory with an input or an earlier output: which, and its place in it."""
    seen: dict[int, int] = {}
    for number, t in enumerate(inputs):
        if t.layout is torch.strided:
            seen.setdefault(t.untyped_storage()._cdata, number)
    found = []
    for number, t in enumerate(outputs):
        if t.layout is not torch.strided:
            continue
        owner = seen.setdefault(t.untyped_storage()._cdata, -1 - number)
        if owner != -1 - number:
            found.append((number, owner, tuple(t.stride()) if t.numel() else (), t.storage_offset()))
    return found
