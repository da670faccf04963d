"""``mamba_ssm`` as far as Megatron's Mamba layers use it: ``mamba_ssm.ops.triton``."""

__version__ = "2.2.6.post3"
"""The release whose arguments these functions take: from this one on Megatron packs sequences."""
