"""``transformer_engine.pytorch.tensor``."""


class QuantizedTensor:
    """A parameter held in fp8: no tensor is one."""
