"""Weight gradient of a linear layer added straight into the gradient buffer."""

from __future__ import annotations

from typing import Any

import torch
from mindspeed_ms.kernels import matmul
from mindspeed_ms.kernels.operator import Operator, cast

Tensor = torch.Tensor


def accumulate_weight_gradient(input: Tensor, grad_output: Tensor, main_grad: Tensor) -> None:
    """main_grad += grad_output^T @ input in place (Megatron's gradient_accumulation_fusion).

    input: (..., in), grad_output: (..., out), same leading shape and dtype; main_grad: (out, in), fp32, bf16
    or fp16. Products are summed in main_grad's dtype or fp32, whichever is wider; on Ascend each product is
    rounded to the dtype of its factors before it is added.
    """
    rows = grad_output.reshape(-1, grad_output.shape[-1])
    _ACCUMULATE(input.reshape(-1, input.shape[-1]), rows, main_grad)


def _check(columns: Tensor, rows: Tensor, main_grad: Tensor) -> None:
    shapes = (rows.shape[-1:], columns.shape[-1:]) if rows.dim() == columns.dim() == 2 else ()
    if not shapes or rows.shape[0] != columns.shape[0] or main_grad.shape != (*shapes[0], *shapes[1]):
        raise ValueError(
            f"accumulate_weight_gradient: input {tuple(columns.shape)}, gradient {tuple(rows.shape)} and sum "
            f"{tuple(main_grad.shape)} do not fit"
        )


def _composite(columns: Tensor, rows: Tensor, main_grad: Tensor) -> None:
    if rows.dtype == main_grad.dtype:
        main_grad.addmm_(rows.t(), columns)
    else:
        main_grad.add_(rows.float().t() @ columns.float())


def _csrc(columns: Tensor, rows: Tensor, main_grad: Tensor) -> None:
    matmul.multiply_into(main_grad, rows.t(), columns, beta=1.0)


def _csrc_refusal(columns: Tensor, rows: Tensor, main_grad: Tensor) -> str | None:
    direct = (
        main_grad.is_contiguous()
        and rows.dtype == columns.dtype
        and main_grad.dtype in (rows.dtype, torch.float32)
        and rows.numel() * columns.numel() > 0
        and matmul.available()
    )
    return None if direct else "the product is added to contiguous sums in its dtype or float32 only"


def _mindspore(columns: Any, rows: Any, main_grad: Any) -> None:
    """A product and an addition: MindSpore 2.10 has InplaceMatmulAdd in its graph mode only."""
    import mindspore as ms

    product = rows.t().mm(columns)
    main_grad.add_(product if main_grad.dtype == ms.float32 else cast(product, main_grad.dtype))


def _refusal(columns: Tensor, rows: Tensor, main_grad: Tensor) -> str | None:
    if not main_grad.is_contiguous():
        return "the sum is written where main_grad lies, which is not contiguous"
    return None if rows.dtype == columns.dtype else "inputs and gradients have different dtypes"


_ACCUMULATE = Operator(
    "accumulate_weight_gradient(Tensor input, Tensor grad_output, Tensor(a!) main_grad) -> ()",
    decides=("input", "grad_output", "main_grad"),
    fake=lambda *_: None,
    composite=_composite,
    csrc=_csrc,
    mindspore=_mindspore,
    refusal=_refusal,
    csrc_refusal=_csrc_refusal,
    check=_check,
)
