"""aten -> MindSpore: lowerings by topic, their registry, routes and coverage."""

from __future__ import annotations


def register() -> None:
    """Registers every lowering with torch's dispatcher; imports MindSpore's operators."""
