"""Weight gradient of a linear layer added straight into the gradient buffer."""

from __future__ import annotations

import torch


def accumulate_weight_gradient(
    input: torch.Tensor, grad_output: torch.Tensor, main_grad: torch.Tensor
) -> None:
    """main_grad += grad_output^T @ input in place (Megatron's gradient_accumulation_fusion).

    input: (..., in), grad_output: (..., out), same leading shape and dtype; main_grad: (out, in), fp32, bf16
    or fp16. Products are summed in main_grad's dtype or fp32, whichever is wider.
    """
    rows = grad_output.reshape(-1, grad_output.shape[-1])
    columns = input.reshape(-1, input.shape[-1])
    if rows.dtype == main_grad.dtype:
        main_grad.addmm_(rows.t(), columns)
    else:
        main_grad.add_(rows.float().t() @ columns.float())
