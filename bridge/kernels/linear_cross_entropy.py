"""Output layer and cross entropy in one: the logits of all tokens never exist together."""

from __future__ import annotations

import torch
import torch.distributed as dist
from mindspeed_ms.kernels.backend import dtype_code, implementation, launch, pointer
from mindspeed_ms.kernels.cross_entropy import vocab_parallel_cross_entropy
from mindspeed_ms.kernels.weight_gradient import accumulate_weight_gradient
from torch.autograd.function import once_differentiable

#: Bytes of logits that exist at one time.
CHUNK_BYTES = 64 << 20


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> torch.Tensor:
    """Loss per token, fp32, of target's shape, of the logits hidden @ weight^T (Wijmans et al. 2024).

    hidden: (..., width), weight: (vocabulary / ranks, width), one dtype of fp32, bf16 and fp16; target: int64
    (...,) ids of the whole vocabulary; rank r of `group` holds ids [r * n, (r + 1) * n) and gets the whole
    gradient of hidden. Logits are made `chunk_bytes` at a time, in forward and again in backward: one more
    product instead of tokens x vocabulary numbers kept. ValueError for shapes that do not fit.
    """
    if hidden.shape[-1] != weight.shape[-1] or target.shape != hidden.shape[:-1]:
        raise ValueError(
            f"linear_cross_entropy: hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and target "
            f"{tuple(target.shape)} do not fit"
        )
    if implementation(hidden, weight) != "csrc":
        if group is not None and group.size() > 1:
            hidden = _WholeGradient.apply(hidden, group)
        return vocab_parallel_cross_entropy(hidden @ weight.t(), target, 0.0, group)
    rows = max(1, chunk_bytes // max(1, weight.shape[0] * hidden.element_size()))
    flat = hidden.reshape(-1, hidden.shape[-1])
    return _LinearCrossEntropy.apply(flat, weight, target.reshape(-1), group, rows).reshape(target.shape)


class _WholeGradient(torch.autograd.Function):
    """hidden as it is; its gradient is summed over the ranks, each of which knows some of the vocabulary."""

    @staticmethod
    def forward(ctx, hidden, group):
        ctx.group = group
        return hidden.view_as(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, target, group, rows):
        ids = target.to(torch.int64).contiguous()
        cols, count = weight.shape[0], ids.numel()
        ranks = 1 if group is None else group.size()
        first = 0 if group is None else group.rank() * cols
        wide = {"dtype": torch.float32, "device": hidden.device}
        peak, sums = torch.empty(count, **wide), torch.empty((2, count), **wide)
        for begin in range(0, count, rows):
            end = min(begin + rows, count)
            logits = hidden[begin:end] @ weight.t()
            place = (end - begin, cols)
            code = dtype_code(logits)
            top, part = peak[begin:end], torch.empty(2, end - begin, **wide)
            if ranks > 1:
                launch("cross_entropy_max", logits, pointer(logits), pointer(top), *place, code)
                dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
            addresses = (pointer(logits), pointer(top), pointer(ids[begin:end]), pointer(part))
            launch("cross_entropy_sums", logits, *addresses, *place, first, False, ranks == 1, code)
            sums[:, begin:end] = part
        if ranks > 1:
            dist.all_reduce(sums, group=group)
        ctx.save_for_backward(hidden, weight, ids, peak, sums[0])
        ctx.group, ctx.first, ctx.rows = group, first, rows
        loss = torch.empty(count, **wide)
        launch("cross_entropy_loss", hidden, pointer(sums), pointer(loss), count, cols, 0.0)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        hidden, weight, ids, peak, total = ctx.saved_tensors
        grad = grad.float().contiguous()
        dhidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        # Sums over chunks are kept in fp32, whatever the weights' dtype.
        dweight = torch.zeros_like(weight, dtype=torch.float32)
        for begin in range(0, ids.numel(), ctx.rows):
            rows = slice(begin, min(begin + ctx.rows, ids.numel()))
            logits = hidden[rows] @ weight.t()
            addresses = (pointer(peak[rows]), pointer(total[rows]), pointer(ids[rows]), pointer(grad[rows]))
            place = (*logits.shape, ctx.first, 1.0, 0.0, dtype_code(logits), dtype_code(logits))
            launch("cross_entropy_grad", logits, pointer(logits), *addresses, pointer(logits), *place)
            dhidden[rows] = logits @ weight
            accumulate_weight_gradient(hidden[rows], logits, dweight)
        if ctx.group is not None and ctx.group.size() > 1:
            dist.all_reduce(dhidden, group=ctx.group)
        return dhidden, dweight.to(weight.dtype), None, None, None
