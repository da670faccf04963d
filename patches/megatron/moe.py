"""Mixture of experts: what Megatron does only with Transformer Engine."""

from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from mindspeed_ms.patches.registry import replace
from mindspeed_ms.patches.stand_ins import Provided, provide

ROUTER_GATING = "megatron.core.transformer.moe.moe_utils:router_gating_linear"
REASON = "without Transformer Engine it reads the undefined name te_general_gemm"


@replace(ROUTER_GATING, reason=REASON, versions=">=0.13,<0.15")
def router_gating_linear_without_bias(
    inp: torch.Tensor, weight: torch.Tensor, router_dtype: torch.dtype
) -> torch.Tensor:
    """Router logits ``[..., num_experts]`` in ``router_dtype`` from ``inp [..., hidden]``."""
    return router_gating_linear(inp, weight, None, router_dtype)


@replace(ROUTER_GATING, reason=REASON, versions=">=0.15,<0.17")
def router_gating_linear(
    inp: torch.Tensor, weight: torch.Tensor, bias: Any, router_dtype: torch.dtype
) -> torch.Tensor:
    """Router logits ``[..., num_experts]`` in ``router_dtype`` from ``inp [..., hidden]``."""
    bias = None if bias is None else bias.to(router_dtype)
    return torch.nn.functional.linear(inp.to(router_dtype), weight.to(router_dtype), bias)


def _multiply_groups(
    a: torch.Tensor, b: torch.Tensor, batch_sizes: torch.Tensor, trans_a: bool = False, trans_b: bool = False
) -> torch.Tensor:
    """``[rows, n]``: ``batch_sizes[i]`` rows of ``a [rows, k]``, in order, times ``b[i] [k, n]``.

    ``trans_b``: each ``b[i]`` is ``[n, k]``. Raises NotImplementedError for ``trans_a``.
    """
    if trans_a:
        raise NotImplementedError("grouped_gemm.ops.gmm with trans_a is not implemented: transpose a before")
    groups = torch.split(a, batch_sizes.tolist())
    return torch.cat([rows @ (w.t() if trans_b else w) for rows, w in zip(groups, b, strict=True)])


def _grouped_gemm(module: ModuleType) -> None:
    module.ops = SimpleNamespace(gmm=_multiply_groups)


provide(
    Provided(
        "grouped_gemm",
        _grouped_gemm,
        "the grouped experts of the local layer spec refuse to be built without it",
    )
)
