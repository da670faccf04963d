"""Adapters that reroute Megatron-Core onto the device; see :mod:`mindspeed_ms.patches.registry`."""
