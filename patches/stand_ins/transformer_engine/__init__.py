"""Stand-in for Transformer Engine where it is not installed: its module classes, signatures, parameter names.

Megatron's default layer specs are made of these classes. The parameter names decide what a checkpoint holds,
so one written on CUDA with Transformer Engine loads here, and the other way round. The classes compose
Megatron's own tensor-parallel linear and core attention with our kernels; they add no arithmetic. Modules
whose names begin with an underscore are ours.
"""

from importlib.metadata import version

from . import common, pytorch  # noqa: F401

__version__ = version("transformer_engine")
"""The release whose features these classes have: Megatron asks before using newer ones."""
