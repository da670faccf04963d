"""The part of NVIDIA's ``emerging_optimizers`` that Megatron's Muon is built on, by our Newton-Schulz kernel.

The package of that time (with ``momentum_beta`` and ``use_nesterov``) was on GitHub only; the releases on
PyPI have other names, which Megatron-Core 0.16 does not know.
"""

from . import orthogonalized_optimizers  # noqa: F401
