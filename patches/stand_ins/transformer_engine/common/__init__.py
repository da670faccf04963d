"""``transformer_engine.common``."""

from . import recipe  # noqa: F401
