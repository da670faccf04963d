"""Sample arguments of every operator of mindspeed_ms.kernels: what opcheck and the Ascend parity tests call.

Operators of gradients have no rows: the gradient of a sample calls them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

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
}  # fmt: skip

#: Public functions that put other kernels together, or make integers: they follow their parts.
MADE_OF_KERNELS = (
    "cached_attention",
    "context_parallel_attention",
    "context_parallel_packed_attention",
    "grouped_weight_gradient",
    "latent_key_value",
    "latent_query",
    "linear_cross_entropy",
    "load_balancing_loss",
    "packed_positions",
    "packed_segments",
    "paged_rows",
    "permutation",
)
