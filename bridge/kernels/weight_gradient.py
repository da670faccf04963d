"""Weight gradient of a linear layer added straight into the gradient buffer."""

from __future__ import annotations

import torch
from mindspeed_ms.kernels import matmul
from mindspeed_ms.kernels.backend import counted, implementation
from mindspeed_ms.kernels.dispatch import choose, on_mindspore
from mindspeed_ms.ops import routes


def _direct(rows: torch.Tensor, columns: torch.Tensor, main_grad: torch.Tensor) -> bool:
    """Whether one matrix product can add to main_grad where it lies; route host keeps torch's own."""
    return (
        main_grad.is_contiguous()
        and rows.dtype == columns.dtype
        and main_grad.dtype in (rows.dtype, torch.float32)
        and rows.numel() * columns.numel() > 0
        and implementation(rows, columns, main_grad) == "csrc"
        and matmul.available()
        and routes.current_route() != "host"
    )


def accumulate_weight_gradient(
    input: torch.Tensor, grad_output: torch.Tensor, main_grad: torch.Tensor
) -> None:
    """main_grad += grad_output^T @ input in place (Megatron's gradient_accumulation_fusion).

    input: (..., in), grad_output: (..., out), same leading shape and dtype; main_grad: (out, in), fp32, bf16
    or fp16. Products are summed in main_grad's dtype or fp32, whichever is wider.
    """
    rows = grad_output.reshape(-1, grad_output.shape[-1])
    columns = input.reshape(-1, input.shape[-1])
    wide = main_grad.dtype == torch.float32 and main_grad.is_contiguous()
    fits = wide and rows.dtype == columns.dtype != torch.float32
    refusal = None if fits else "the operator adds 16-bit products to contiguous float32"
    if choose("accumulate_weight_gradient", rows, columns, main_grad, refusal=refusal) == "mindspore":
        on_mindspore("accumulate_weight_gradient", columns, rows, main_grad)
    elif _direct(rows, columns, main_grad):
        with counted("weight_gradient", rows):
            matmul.multiply_into(main_grad, rows.t(), columns, beta=1.0)
    elif rows.dtype == main_grad.dtype:
        main_grad.addmm_(rows.t(), columns)
    else:
        main_grad.add_(rows.float().t() @ columns.float())
