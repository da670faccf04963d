"""Sequence-parallel linear layers on Ascend: product and collective in one operator, and their gradients.

Rows of a sequence lie split over the ranks of a tensor-parallel group. MindSpore 2.10's fused operators have
no gradient of their own; each is the other's, as Megatron's forward and backward collectives are.
"""

from __future__ import annotations

from typing import Any

#: A mindspore.Tensor; the package is not imported for an annotation.
MsTensor = Any


def column_linear(x: MsTensor, weight: MsTensor, group: str, ranks: int) -> MsTensor:
    """ops.all_gather_matmul: gathered x @ weight^T (ranks * rows, out).

    x (rows, in): this rank's; weight (out, in): this rank's share of the outputs; `group`: MindSpore's name.
    The gathered x is not kept: memory for it is what sequence parallelism saves.
    """
    from mindspore import ops

    return ops.all_gather_matmul(x, weight, group, ranks, gather_output=False, trans_x2=True)[0]


def column_linear_backward(grad: MsTensor, weight: MsTensor, group: str, ranks: int) -> MsTensor:
    """ops.matmul_reduce_scatter: this rank's rows of the gradient of x; grad (ranks * rows, out)."""
    from mindspore import ops

    return ops.matmul_reduce_scatter(grad, weight, group, ranks)


def row_linear(x: MsTensor, weight: MsTensor, group: str, ranks: int) -> MsTensor:
    """ops.matmul_reduce_scatter: this rank's rows (rows / ranks, out) of the summed x @ weight^T.

    x (rows, in): all rows, this rank's share of the inputs; weight (out, in).
    """
    from mindspore import ops

    return ops.matmul_reduce_scatter(x, weight, group, ranks, trans_x2=True)


def row_linear_backward(
    grad: MsTensor, weight: MsTensor, group: str, ranks: int
) -> tuple[MsTensor, MsTensor]:
    """ops.all_gather_matmul: the gradient of x (rows, in), and gathered grad for the weight's gradient."""
    from mindspore import ops

    return ops.all_gather_matmul(grad, weight, group, ranks, gather_output=True)


def accumulate_weight_gradient(input: MsTensor, grad_output: MsTensor, main_grad: MsTensor) -> MsTensor:
    """InplaceMatmulAdd: main_grad (out, in), fp32, += grad_output (rows, out)^T @ input (rows, in)."""
    from mindspore.ops import auto_generate

    return auto_generate.inplace_matmul_add_op(grad_output, input, main_grad)
