"""Adapters that reroute Megatron-Core onto the device.

:mod:`.registry` holds what a patch is and when it is applied, :mod:`.verify` checks targets against a source
tree of Megatron without importing it, :mod:`.stand_ins` lends a missing GPU package to the Megatron modules
that import it unguarded, and ``megatron/<area>.py`` declare the patches themselves.
"""
