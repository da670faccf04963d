"""Sample arguments of every operator of mindspeed_ms.kernels: what opcheck, selftest and tests call.

Operators of gradients have no rows: the gradient of a sample calls them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from mindspeed_ms.kernels import parallel_linear, state_space  # noqa: F401 - their operators

Tensor = torch.Tensor


@dataclass
class Draw:
    """Makes the tensors of a sample."""

    device: str
    dtype: torch.dtype

    def __call__(self, *shape: int, dtype: torch.dtype | None = None, grad: bool = True) -> Tensor:
        """Normal numbers, which take a gradient."""
        made = torch.randn(shape).to(dtype or self.dtype).to(self.device)
        return made.requires_grad_(grad)

    def tensor(self, values: Any, dtype: torch.dtype | None = None) -> Tensor:
        """These values."""
        return torch.tensor(values, dtype=dtype).to(self.device)

    def many(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Two tensors without gradients."""
        return [self(32, dtype=dtype, grad=False), self(4, 16, dtype=dtype, grad=False)]

    def positive(self) -> list[Tensor]:
        """Second moments."""
        return [t.abs() for t in self.many(torch.float32)]

    def angles(self, length: int, rotary: int) -> tuple[Tensor, Tensor]:
        """Tables of cosines and sines, both halves."""
        angles = torch.randn(length, 1, 1, rotary // 2).repeat(1, 1, 1, 2)
        return angles.cos().to(self.device), angles.sin().to(self.device)


TARGETS = [[0, 3], [7, 3], [30, 1], [2, 5]]
PLACES = [i % 10 for i in range(20)]
CHOICES = [[0, 3], [1, 2], [0, 1], [2, 4], [3, 4]]
MASK = [[[[False, True, False, False, False, False, True]] * 5]] * 2

SEQUENCES = [[0] * 4 + [1] * 5, [0] * 9]

QUERY, KEY = (8, 2, 4, 32), (8, 2, 2, 32)


def attention(
    draw: Draw,
    query: tuple[int, ...],
    key: tuple[int, ...],
    value: tuple[int, ...],
    *,
    mask: Tensor | None = None,
    layout: str = "sbhd",
    softcap: float = 0.0,
    left: int = -1,
    right: int = -1,
    segments: list[int] | None = None,
    lse: bool = False,
) -> tuple[Any, ...]:
    """Arguments of a call without dropout."""
    options = (layout, 0.2, softcap, left, right, None, segments, 0, 0, lse)
    return draw(*query), draw(*key), draw(*value), mask, *options


def partial(draw: Draw) -> list[Tensor]:
    """Output, maximum and sum of a step of a ring."""
    shapes = ((8, 2, 128), (2, 4, 8, 1), (2, 4, 8, 1))
    out, peak, total = (draw(*shape, dtype=torch.float32, grad=False) for shape in shapes)
    return [out, peak.repeat(1, 1, 1, 8), total.abs().add(1.0).repeat(1, 1, 1, 8)]


def step_gradient(draw: Draw) -> tuple[Any, ...]:
    """A ring of one step: its results are those of the whole."""
    query, key, value, grad = (draw(*shape, grad=False) for shape in (QUERY, KEY, KEY, QUERY))
    out, peak, total = torch.ops.mindspeed_ms.ring_step(query, key, value, True, 0.2)
    return query, key, value, grad, out.to(draw.dtype), peak, total, True, 0.2


def scan(
    draw: Draw, skip: Tensor | None, state: Tensor | None, sequence: Tensor | None, chunk: int
) -> tuple[Any, ...]:
    """Arguments of a state-space scan: four heads in two groups, positive steps, decay."""
    dt = draw(2, 9, 4, dtype=torch.float32).detach().abs().requires_grad_()
    a = draw(4, dtype=torch.float32).detach().abs().neg().requires_grad_()
    tensors = draw(2, 9, 4, 5), dt, a, draw(2, 9, 2, 3), draw(2, 9, 2, 3)
    return *tensors, skip, state, sequence, chunk


Sample = Callable[[Draw], tuple[Any, ...]]

SAMPLES: dict[str, list[Sample]] = {
    "rms_norm": [
        lambda draw: (draw(3, 4, 32), draw(32), None, None, 1e-5, True),
        lambda draw: (draw(3, 32), None, None, draw(3, 32), 1e-5, False),
    ],
    "layer_norm": [
        lambda draw: (draw(3, 4, 32), draw(32), draw(32), None, 1e-5, False),
        lambda draw: (draw(3, 32), draw(32), None, draw(3, 32), 1e-5, True),
    ],
    "bias_activation": [
        *(lambda draw, name=name: (draw(3, 4, 32), draw(32), name)
          for name in ("gelu_tanh", "gelu", "silu", "quick_gelu", "squared_relu")),
        lambda draw: (draw(3, 32), None, "silu"),
    ],
    "bias_glu": [
        lambda draw: (draw(3, 4, 32), None, None, "silu", 0.0, None),
        lambda draw: (draw(6, 32), draw(32), draw(6, 1, dtype=torch.float32), "quick_gelu", 1.0, 1.5),
        lambda draw: (draw(6, 32), draw(32), None, "gelu_tanh", 0.0, None),
    ],
    "scaled_softmax": [
        lambda draw: (draw(2, 3, 5, 7), None, 0.5, True),
        lambda draw: (draw(2, 3, 5, 7), draw.tensor(MASK).expand(2, 3, 5, 7), 0.5, False),
    ],
    "bias_dropout_add": [
        lambda draw: (draw(3, 32), draw(32), draw(3, 32), draw.tensor([[True, False] * 16] * 3), 2.0),
        lambda draw: (draw(3, 4, 32), draw(32), draw(3, 4, 32), None, 1.0),
    ],
    "rope": [
        *(lambda draw, layout=layout: (draw(5, 2, 4, 32), *draw.angles(5, 32), layout)
          for layout in ("half", "interleaved", "to_half")),
        lambda draw: (draw(5, 2, 4, 32), *draw.angles(5, 16), "half"),
    ],
    "embedding_grad": [
        lambda draw: (draw(6, 32, grad=False), draw.tensor([0, 3, 7, 3, 30, 1]), None, 10, 1),
        lambda draw: (draw(3, 32, grad=False), draw.tensor([0, 4, 4]), draw.tensor([1.0, 0.5, 0.5]), 5, -1),
    ],
    "embedding_grad_into": [
        lambda draw: (draw(10, 32, dtype=torch.float32, grad=False), draw(3, 32, grad=False),
                      draw.tensor([0, 9, 9]), None, -1),
    ],
    "accumulate_weight_gradient": [
        lambda draw: (draw(8, 32, grad=False), draw(8, 16, grad=False),
                      draw(16, 32, dtype=torch.float32, grad=False)),
    ],
    "vocab_parallel_cross_entropy": [
        lambda draw: (draw(4, 2, 32), draw.tensor(TARGETS), 0.0, "", False),
        lambda draw: (draw(4, 2, 32), draw.tensor(TARGETS), 0.1, "", False),
    ],
    "vocab_parallel_cross_entropy_backward_": [
        lambda draw: (draw(8, 32, grad=False), draw(8, dtype=torch.float32, grad=False),
                      draw.tensor(TARGETS).flatten(), *draw.tensor([[1.0] * 8, [30.0] * 8]).unbind(),
                      0.0, ""),
    ],
    "linear_cross_entropy": [
        lambda draw: (draw(8, 16), draw(32, 16), draw.tensor(TARGETS).flatten(), "", 3),
    ],
    "topk_router": [
        lambda draw: (draw(10, 16), None, 0, 4, 0, 0, 1.0),
        lambda draw: (draw(10, 16), None, 1, 4, 0, 0, 2.0),
        lambda draw: (draw(10, 16), draw(16, dtype=torch.float32, grad=False), 2, 4, 4, 2, 2.5),
    ],
    "auxiliary_scores": [
        lambda draw: (draw(10, 16), None, 0, 4, 0, 0, 1.0),
        lambda draw: (draw(10, 16), None, 2, 4, 0, 0, 1.0),
    ],
    "gather_rows": [
        lambda draw: (draw(10, 32), draw.tensor(PLACES), None),
        lambda draw: (draw(10, 32, grad=False), draw.tensor(PLACES), draw(20, grad=False)),
    ],
    "combine_rows": [
        lambda draw: (draw(20, 32), draw.tensor(PLACES), draw(20, dtype=torch.float32), 10),
        lambda draw: (draw(20, 32), draw.tensor(PLACES), None, 10),
    ],
    "permute": [lambda draw: (draw(5, 32), draw.tensor(CHOICES, torch.int32))],
    "unpermute": [
        lambda draw: (draw(10, 32), draw.tensor([4, 0, 6, 8, 1, 2, 3, 5, 7, 9], torch.int32), draw(5, 2)),
    ],
    "grouped_matmul": [
        lambda draw: (draw(20, 32), [draw(3, 32, 16)], [4, 0, 16], False),
        lambda draw: (draw(20, 32), [draw(16, 32), draw(16, 32)], [4, 16], True),
    ],
    "adam_step": [
        lambda draw: (draw.many(torch.float32), draw.many(), draw.many(torch.float32), draw.positive(),
                      draw.many(torch.bfloat16), 3, 0.1, 0.9, 0.99, 1e-6, 0.1, True, True, False, 0.5),
        lambda draw: (draw.many(), draw.many(), draw.many(), draw.positive(),
                      [], 3, 0.1, 0.9, 0.99, 1e-6, 0.1, False, True, True, 1.0),
    ],
    "sgd_step": [
        lambda draw: (draw.many(), draw.many(), draw.many(), [], 0.1, 0.9, 0.0, 0.1, True, False, False, 1.0),
    ],
    "multi_scale": [
        lambda draw: (draw.many(), draw.many(torch.float32), 0.5, True, True),
        lambda draw: (draw.many(), [], 0.5, True, False),
    ],
    "multi_scale_": [lambda draw: (draw.many(), 0.5, False, True)],
    "l2_norm": [lambda draw: (draw.many(),)],
    "newton_schulz": [
        lambda draw: (draw(32, 16, grad=False), 2, [3.4445, -4.7750, 2.0315], 1e-7, torch.float32, -1, ""),
    ],
    "attention": [
        lambda draw: attention(draw, QUERY, KEY, KEY, right=0),
        lambda draw: attention(draw, QUERY, KEY, (8, 2, 2, 16)),
        lambda draw: attention(draw, QUERY, KEY, KEY, left=3, right=0),
        lambda draw: attention(draw, (2, 8, 4, 32), (2, 10, 2, 32), (2, 10, 2, 32), layout="bshd", right=0),
        lambda draw: attention(draw, (2, 4, 8, 32), *[(2, 2, 8, 32)] * 2, layout="bhsd", left=2, right=3),
        lambda draw: attention(draw, QUERY, KEY, KEY, right=0,
                               mask=(torch.arange(8) == 2).expand(2, 1, 8, 8).to(draw.device)),
        lambda draw: attention(draw, (1, 20, 4, 32), (1, 20, 2, 32), (1, 20, 2, 32), layout="bshd", right=0,
                               segments=[0, 5, 0, 5, 0, 5, 15, 5, 15, 0]),
        lambda draw: attention(draw, (1, 20, 4, 32), (1, 20, 2, 32), (1, 20, 2, 32), layout="bshd", left=4,
                               right=0, segments=[0, 5, 0, 5, 0, 5, 15, 5, 15, 0]),
        lambda draw: attention(draw, QUERY, KEY, KEY, softcap=2.0, lse=True),
    ],
    "causal_conv": [
        lambda draw: (draw(2, 6, 9), draw(6, 4), draw(6), None, None, True),
        lambda draw: (draw(2, 6, 9), draw(6, 4), None, draw(2, 6, 3), None, False),
        lambda draw: (draw(2, 6, 9), draw(6, 4), draw(6), None, draw.tensor(SEQUENCES), True),
    ],
    "state_space_scan": [
        lambda draw: scan(draw, draw(4), None, None, 4),
        lambda draw: scan(draw, draw(4, 5), draw(2, 4, 5, 3, dtype=torch.float32), None, 16),
        lambda draw: scan(draw, None, None, draw.tensor(SEQUENCES), 4),
    ],
    "ring_step": [
        lambda draw: (*(draw(*shape, grad=False) for shape in (QUERY, KEY, (8, 2, 2, 16))), True, 0.2),
        lambda draw: (*(draw(*shape, grad=False) for shape in (QUERY, KEY, (8, 2, 2, 16))), False, 0.2),
    ],
    "ring_merge": [
        lambda draw: (*partial(draw), *partial(draw)),
    ],
    "ring_step_backward": [step_gradient],
}  # fmt: skip

#: Operators of several ranks: shapes of x and weight; tests/distributed/test_group_kernels.py calls them.
OF_A_GROUP = {
    "column_linear": ((8, 6), (5, 6)),
    "column_linear_backward": ((8, 6), (6, 5)),
    "row_linear": ((8, 6), (5, 6)),
    "row_linear_backward": ((8, 6), (6, 5)),
}
