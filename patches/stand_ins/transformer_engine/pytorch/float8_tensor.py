"""``transformer_engine.pytorch.float8_tensor``."""

from .tensor import QuantizedTensor as Float8Tensor  # noqa: F401
