"""How a parameter of Megatron is made of tensors of Hugging Face: what weight tables are written in.

A :class:`Rule` describes the whole parameter, before it is split over ranks, as blocks of rows of stored
tensors. Tensor parallelism takes an equal share of each block (a gated MLP has two), or of the columns. What
cannot be said this way is no copy of a weight: a family that needs it is refused.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class Split(enum.Enum):
    """What of a parameter a rank of the tensor-parallel group holds."""

    WHOLE = "all of it"
    ROWS = "a share of the rows of each block"
    COLUMNS = "a share of the columns"


class Rows(NamedTuple):
    """``height`` rows of a stored tensor of ``total`` rows from ``start`` on; zeros if ``key`` is empty."""

    key: str
    start: int
    height: int
    total: int


Block = tuple[Rows, ...]


@dataclass(frozen=True)
class Sizes:
    """What weight tables ask of a model; ``heads``, ``groups`` and ``head`` are of its attention."""

    layers: int
    vocabulary: int
    heads: int
    groups: int
    head: int


@dataclass(frozen=True)
class Rule:
    """``blocks(sizes, rows)``: what the rows of the whole parameter, ``rows`` of them, are made of.

    ``transposed``: the stored matrix has inputs first, as GPT-2's Conv1D.
    """

    blocks: Callable[[Sizes, int], tuple[Block, ...]]
    split: Split = Split.WHOLE
    transposed: bool = False


def whole(key: str, split: Split = Split.WHOLE, transposed: bool = False) -> Rule:
    """The stored tensor itself."""
    return Rule(lambda sizes, rows: ((Rows(key, 0, rows, rows),),), split, transposed)


def rows(key: str, transposed: bool = False) -> Rule:
    """A column-parallel matrix or its bias: ranks share the rows."""
    return whole(key, Split.ROWS, transposed)


def columns(key: str, transposed: bool = False) -> Rule:
    """A row-parallel matrix: ranks share the columns."""
    return whole(key, Split.COLUMNS, transposed)


def vocabulary(key: str) -> Rule:
    """An embedding or output matrix, whose rows Megatron pads with zeros."""

    def blocks(sizes: Sizes, padded: int) -> tuple[Block, ...]:
        known = sizes.vocabulary
        return ((Rows(key, 0, known, known), Rows("", 0, max(0, padded - known), 0)),)

    return Rule(blocks, Split.ROWS)


def gated(gate: str, up: str) -> Rule:
    """The first matrix of a gated MLP: gate, then up."""

    def blocks(sizes: Sizes, rows: int) -> tuple[Block, ...]:
        half = rows // 2
        if gate == up:  # stored as one
            return ((Rows(gate, 0, half, rows),), (Rows(up, half, half, rows),))
        return ((Rows(gate, 0, half, half),), (Rows(up, 0, half, half),))

    return Rule(blocks, Split.ROWS)


def qkv(query: str, key: str = "", value: str = "", transposed: bool = False) -> Rule:
    """Fused attention input: for each group queries, key, value. A single name: they are stored as one."""

    def blocks(sizes: Sizes, total: int) -> tuple[Block, ...]:
        head, groups = sizes.head, sizes.groups
        each = (sizes.heads // groups * head, head, head)
        together = not key
        names = (query,) * 3 if together else (query, key, value)
        parts, start = [], 0
        for name, count in zip(names, each, strict=True):
            parts.append((name, start, count, total if together else count * groups))
            start += count * groups if together else 0
        return (
            tuple(
                Rows(name, start + group * count, count, of)
                for group in range(groups)
                for name, start, count, of in parts
            ),
        )

    return Rule(blocks, Split.ROWS, transposed)
