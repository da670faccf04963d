"""What can be wrong with a Hugging Face folder, by kind."""

from __future__ import annotations


class WeightsError(ValueError):
    """Weights and model do not fit: a key too many or too few, a shape, a damaged file."""


class ConfigError(ValueError):
    """A config.json that cannot be read, lacks an entry, or contradicts a flag of the command line."""


class UnsupportedModelError(NotImplementedError):
    """An architecture, or a feature of one, that Megatron-Core or this package cannot express."""
