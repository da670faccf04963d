"""The product of grouped experts whose weight gradients are added to Megatron's sums as they are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mindspeed_ms.kernels import grouped_matmul
from mindspeed_ms.kernels.weight_gradient import accumulate_weight_gradient
from torch.autograd.function import once_differentiable


def has_sums(weights: Sequence[torch.Tensor]) -> bool:
    """Whether there are sums to add gradients to; Megatron FSDP makes its own only in backward."""
    return all(
        getattr(w, "main_grad", None) is not None and not hasattr(w, "__fsdp_param__") for w in weights
    )


class AccumulatingProduct(torch.autograd.Function):
    """As Megatron's LinearWithGradAccumulationAndAsyncCommunication, of all experts at once."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, m_splits: list[int], *weights: torch.Tensor) -> torch.Tensor:
        """x ``(rows, in)``, its rows sorted by expert, weights ``(out, in)`` -> ``(rows, out)``."""
        ctx.save_for_backward(x, *weights)
        # What is saved comes back as a tensor without the attributes that Megatron gave the parameter.
        ctx.parameters, ctx.m_splits = weights, m_splits
        return grouped_matmul(x, weights, m_splits, turned=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradient of x; those of the weights are in their ``main_grad``, dummies take their place."""
        x, *weights = ctx.saved_tensors
        grad = grad.contiguous()
        of_x = grouped_matmul(grad, weights, ctx.m_splits) if ctx.needs_input_grad[0] else None
        parts = zip(x.split(ctx.m_splits), grad.split(ctx.m_splits), ctx.parameters, strict=True)
        return of_x, None, *(_accumulated(*part) for part in parts)


def _accumulated(x: torch.Tensor, grad: torch.Tensor, weight: Any) -> torch.Tensor | None:
    """What autograd is given for a weight whose gradient went to its sums: hooks must run all the same."""
    if not weight.requires_grad:
        return None
    if x.shape[0]:
        accumulate_weight_gradient(x, grad, weight.main_grad)
    if not hasattr(weight, "grad_added_to_main_grad"):
        return None
    weight.grad_added_to_main_grad = True
    make = torch.zeros_like if getattr(weight, "zero_out_wgrad", False) else torch.empty_like
    return make(weight)
