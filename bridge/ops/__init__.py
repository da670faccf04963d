"""aten -> MindSpore: lowerings by topic, their registry, routes and coverage."""

from __future__ import annotations

from importlib import import_module

from mindspeed_ms import _runtime

TOPICS = (
    *("pointwise", "activation", "reduction", "sorting", "linalg"),
    *("normalization", "loss", "indexing", "masking", "arranging"),
)
"""Modules that enter their rows into the registry's table when imported."""


def register() -> None:
    """Registers every lowering with torch's dispatcher.

    Raises:
        LookupError: a lowering names an operator that this torch does not have.
        ValueError: the table of route auto does not fit the lowerings.
    """
    # Imported here: the first npu tensor needs the table, and `import mindspeed_ms.patch` stays light.
    for topic in TOPICS:
        import_module(f"mindspeed_ms.ops.{topic}")
    from mindspeed_ms.ops import auto, factories, host, random, registry

    registry.register_all()
    auto.apply(registry.table)
    host.allow()
    if _runtime.opaque_memory():
        factories.register()
        random.register()
