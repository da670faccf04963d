"""``grouped_gemm``: the products of a mixture of experts, in ``grouped_gemm.ops``."""

from . import ops  # noqa: F401
