"""What all forms of attention share: layouts, the sequences of a call, and how its arguments are named."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]
Sequences = tuple[tuple[int, int, int, int, int, int], ...]
"""(batch, q_begin, q_len, k_begin, k_len, shift) of each sequence: AttentionSequence in csrc."""

LAYOUTS = {"sbhd": (1, 0, 2), "bshd": (0, 1, 2), "bhsd": (0, 2, 1)}
"""Where a layout keeps (batch, row, head); the last dimension is the head's."""

OPTIONS = (
    "str layout, float scale, float softcap, int left, int right, SymInt? shift, SymInt[]? segments, "
    "int drop, int seed, bool differentiable_lse"
)
"""The arguments behind the tensors: fields of :class:`Plan`, in order."""


@dataclass(frozen=True)
class Plan:
    """Options of a call, as the operators have them."""

    layout: str
    scale: float
    softcap: float
    left: int
    """Bounds of the window; -1: none. right is 0 for causal attention."""
    right: int
    shift: int | None
    segments: list[int] | None
    """Five numbers for each packed sequence (Segment); None: every batch entry is a sequence."""
    drop: int
    """Of 65536."""
    seed: int
    differentiable_lse: bool
    """Whether the log-sum-exp may get a gradient."""

    def sequences(self, query: Tensor, key: Tensor) -> Sequences:
        """Where they lie; ValueError if beyond query or key."""
        b, s, _ = sizes(query, self.layout)
        sk = key.shape[LAYOUTS[self.layout][1]]
        if self.segments is None:
            shift = sk - s if self.shift is None else self.shift
            return tuple((i, 0, s, 0, sk, shift) for i in range(b))
        found = zip(*(self.segments[i::5] for i in range(5)), strict=True)
        return tuple((0, *segment) for segment in found)


def sizes(tensor: Tensor, layout: str) -> tuple[int, int, int]:
    """Batch, rows and heads."""
    b, s, h = (tensor.shape[i] for i in LAYOUTS[layout])
    return b, s, h


def fake(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, layout: str, *_: object) -> Pair:
    """Empty results: out of query's layout and dtype; lse (b, heads, s)."""
    b, s, heads = sizes(query, layout)
    out = torch.empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device=query.device)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    return out, torch.empty((b, heads, s), dtype=wide, device=query.device)


def visible(sequence: tuple[int, ...], window: tuple[int, int], device: torch.device) -> Tensor:
    """bool (s, sk): the keys that each query of one sequence sees."""
    _, _, s, _, sk, shift = sequence
    at = torch.arange(s, device=device).view(-1, 1) + shift
    keys = torch.arange(sk, device=device).view(1, -1)
    seen = torch.ones(s, sk, dtype=torch.bool, device=device)
    if window[0] >= 0:
        seen = seen & (keys >= at - window[0])
    if window[1] >= 0:
        seen = seen & (keys <= at + window[1])
    return seen


def tiles(sequences: Sequences, s: int, sk: int) -> bool:
    """Whether the sequences of a batch entry cover its queries and keys one after the other."""
    ends: dict[int, tuple[int, int]] = {}
    for i, q_begin, q_len, k_begin, k_len, _ in sequences:
        if (q_begin, k_begin) != ends.get(i, (0, 0)) or not q_len or not k_len:
            return False
        ends[i] = (q_begin + q_len, k_begin + k_len)
    return all(end == (s, sk) for end in ends.values())


NOTHING = -math.inf
"""Log-sum-exp of a query that sees no key."""
