"""Stand-in for Transformer Engine where it is not installed: its module classes, signatures, parameter names.

Megatron's default layer specs are made of these classes. The parameter names decide what a checkpoint holds,
so one written on CUDA with Transformer Engine loads here, and the other way round. The classes compose
Megatron's own tensor-parallel linear and core attention with our kernels; they add no arithmetic.
"""

VERSION = "2.2.0"
"""The Transformer Engine release whose features these classes have: Megatron asks before using newer ones."""
