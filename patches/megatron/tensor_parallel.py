"""Tensor parallelism: sequence-parallel linear layers as Ascend has them."""

from collections.abc import Callable
from typing import Any

import torch
from mindspeed_ms.patches.registry import around

FUSED = "on Ascend product and collective of sequence parallelism are one operator"


@around(
    "megatron.core.tensor_parallel.layers:linear_with_grad_accumulation_and_async_allreduce", reason=FUSED
)
def column_parallel_product(
    original: Callable[..., torch.Tensor],
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    gradient_accumulation_fusion: bool,
    allreduce_dgrad: bool,
    sequence_parallel: bool,
    *positional: Any,
    **options: Any,
) -> torch.Tensor:
    """``input [s, b, in]`` @ ``weight^T`` + bias; where rows are gathered first, by one operator on Ascend.

    Megatron's own way is kept for weight gradients that it defers (``grad_output_buffer``), and for the
    buffers of its FSDP. Neither keeps the result, so that logits may be overwritten.
    """
    from mindspeed_ms.kernels import parallel_linear
    from mindspeed_ms.kernels.cross_entropy import mark_disposable

    deferred = bool(positional) or options.get("grad_output_buffer") is not None
    if sequence_parallel and not deferred and not hasattr(weight, "__fsdp_param__"):
        group = _group(options.get("tp_group"))
        if parallel_linear.takes_fused("column_linear", input, weight, group):
            gradient = weight_gradient(weight, gradient_accumulation_fusion)
            out = parallel_linear.column_linear(input, weight, group, gradient)
            return mark_disposable(out if bias is None else out + bias)
    flags = (gradient_accumulation_fusion, allreduce_dgrad, sequence_parallel)
    return mark_disposable(original(input, weight, bias, *flags, *positional, **options))


@around("megatron.core.tensor_parallel.layers:RowParallelLinear.forward", reason=FUSED)
def row_parallel_linear(original: Callable[..., Any], self: Any, input_: torch.Tensor) -> Any:
    """Output ``[s / tp, b, out]`` of ``input_ [s, b, in / tp]``, and the bias that the caller is to add."""
    elsewhere = getattr(self, "explicit_expert_comm", False) or self.config.cpu_offloading
    if self.sequence_parallel and not elsewhere:
        fuse = self.gradient_accumulation_fusion
        out = row_parallel_product(input_, self.weight, getattr(self, "tp_group", None), fuse)
        if out is not None and self.skip_bias_add:
            return out, self.bias
        if out is not None:
            return (out if self.bias is None else out + self.bias), None
    return original(self, input_)


def row_parallel_product(
    input: torch.Tensor, weight: torch.Tensor, group: Any, gradient_accumulation_fusion: bool
) -> torch.Tensor | None:
    """The product whose rows are summed and scattered, where Ascend has one operator for it; else None."""
    from mindspeed_ms.kernels import parallel_linear

    if not weight.requires_grad or hasattr(weight, "__fsdp_param__"):
        return None
    group = _group(group)
    if not parallel_linear.takes_fused("row_linear", input, weight, group):
        return None
    gradient = weight_gradient(weight, gradient_accumulation_fusion)
    return parallel_linear.row_linear(input, weight, group, gradient)


def _group(group: Any) -> Any:
    from megatron.core.parallel_state import get_tensor_model_parallel_group

    return get_tensor_model_parallel_group() if group is None else group


def weight_gradient(
    weight: torch.Tensor, gradient_accumulation_fusion: bool
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None]:
    """What takes the gradient of ``weight``: a product, or a sum into the ``main_grad`` it has by now.

    After a sum Megatron's hooks look for ``grad`` all the same, of which they use the values only where
    ``zero_out_wgrad`` says so.
    """
    from mindspeed_ms.kernels.parallel_linear import product

    main_grad: Any = getattr(weight, "main_grad", None)

    def accumulate(grad: torch.Tensor, rows: torch.Tensor) -> torch.Tensor | None:
        from mindspeed_ms.kernels.weight_gradient import accumulate_weight_gradient

        accumulate_weight_gradient(rows, grad, main_grad)
        if not hasattr(weight, "grad_added_to_main_grad"):
            return None
        weight.grad_added_to_main_grad = True
        return (torch.zeros_like if getattr(weight, "zero_out_wgrad", False) else torch.empty_like)(weight)

    return product if main_grad is None or not gradient_accumulation_fusion else accumulate
