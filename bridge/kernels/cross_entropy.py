"""Cross entropy over logits whose vocabulary may be split over a tensor-parallel group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from mindspeed_ms.kernels.backend import dtype_code, launch, pointer
from mindspeed_ms.kernels.dispatch import choose, on_mindspore
from torch.autograd.function import once_differentiable


def vocab_parallel_cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    label_smoothing: float = 0.0,
    group: dist.ProcessGroup | None = None,
    *,
    reuse_logits: bool = False,
) -> torch.Tensor:
    """Loss per token, fp32, of target's shape (Megatron's vocab_parallel_cross_entropy).

    logits: (..., vocabulary / ranks), fp32, bf16 or fp16; target: int64 (...,) ids in the whole vocabulary;
    rank r of `group` holds ids [r * n, (r + 1) * n). Label smoothing is Megatron's: the smoothed part is
    label_smoothing * K / (K - 1) over the K columns of this rank. Neither the softmax nor an fp32 copy of the
    logits is kept; with `reuse_logits` the gradient overwrites the logits, for callers that own them.
    """
    if target.shape != logits.shape[:-1]:
        raise ValueError(
            f"cross entropy: target {tuple(target.shape)} does not fit logits {tuple(logits.shape)}"
        )
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"cross entropy: label_smoothing must be in [0, 1), got {label_smoothing}")
    split = group is not None and group.size() > 1
    refusal = "the operator knows the vocabulary of one rank" if split else None
    chosen = choose("vocab_parallel_cross_entropy", logits, refusal=refusal)
    if chosen == "mindspore":
        return on_mindspore("vocab_parallel_cross_entropy", logits, target, label_smoothing)
    if chosen == "composite":
        return cross_entropy_composite(logits, target, label_smoothing, group)
    return _CrossEntropy.apply(logits, target, float(label_smoothing), group, reuse_logits)


def cross_entropy_composite(
    logits: torch.Tensor,
    target: torch.Tensor,
    label_smoothing: float = 0.0,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """The reference in torch operators."""
    if group is not None and group.size() > 1:
        return _SplitVocabulary.apply(logits, target, label_smoothing, group)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logp = torch.log_softmax(wide, dim=-1)
    loss = -logp.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    if label_smoothing > 0.0:
        share = label_smoothing * logits.shape[-1] / (logits.shape[-1] - 1)
        loss = (1.0 - share) * loss - share * logp.mean(dim=-1)
    return loss


class _SplitVocabulary(torch.autograd.Function):
    """The composite over the ranks of a group; autograd knows no gradient of its collectives."""

    @staticmethod
    def forward(ctx, logits, target, label_smoothing, group):
        cols = logits.shape[-1]
        wide = logits if logits.dtype == torch.float64 else logits.float()
        peak = wide.amax(-1)
        dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
        shifted = wide - peak.unsqueeze(-1)
        total = shifted.exp().sum(-1)
        dist.all_reduce(total, group=group)
        ids = target - group.rank() * cols
        mine = (ids >= 0) & (ids < cols)
        ids = ids.clamp(0, cols - 1)
        chosen = shifted.gather(-1, ids.unsqueeze(-1)).squeeze(-1) * mine
        dist.all_reduce(chosen, group=group)
        logp = shifted - total.log().unsqueeze(-1)
        loss, share = total.log() - chosen, 0.0
        if label_smoothing > 0.0:  # over this rank's columns, as Megatron does
            share = label_smoothing * cols / (cols - 1)
            loss = (1.0 - share) * loss - share * logp.mean(-1)
        ctx.save_for_backward(logp, ids, mine)
        ctx.share, ctx.dtype = share, logits.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        logp, ids, mine = ctx.saved_tensors
        dlogits = logp.exp() - ctx.share / logp.shape[-1]
        hit = mine.unsqueeze(-1).to(dlogits.dtype) * (ctx.share - 1.0)
        dlogits.scatter_add_(-1, ids.unsqueeze(-1), hit)
        return (dlogits * grad.unsqueeze(-1)).to(ctx.dtype), None, None, None


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, label_smoothing, group, reuse_logits):
        logits = logits.contiguous()
        ids = target.to(torch.int64).contiguous()
        cols = logits.shape[-1]
        rows = ids.numel()
        ranks = 1 if group is None else group.size()
        first = 0 if group is None else group.rank() * cols
        smoothing = label_smoothing > 0.0
        wide = {"dtype": torch.float32, "device": logits.device}
        peak = torch.empty(rows, **wide)
        sums = torch.empty((3 if smoothing else 2, rows), **wide)
        if ranks > 1:
            code = dtype_code(logits)
            launch("cross_entropy_max", logits, pointer(logits), pointer(peak), rows, cols, code)
            dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
        launch(
            "cross_entropy_sums",
            logits,
            pointer(logits),
            pointer(peak),
            pointer(ids),
            pointer(sums),
            rows,
            cols,
            first,
            smoothing,
            ranks == 1,
            dtype_code(logits),
        )
        if ranks > 1:
            # The sum of logits stays local: Megatron smooths over the rank's own columns.
            dist.all_reduce(sums[:2], group=group)
        share = label_smoothing * cols / (cols - 1) if smoothing else 0.0
        loss = torch.empty(target.shape, **wide)
        launch("cross_entropy_loss", logits, pointer(sums), pointer(loss), rows, cols, share)
        ctx.save_for_backward(logits, ids, peak, sums)
        ctx.first, ctx.share, ctx.reuse = first, share, reuse_logits
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        logits, ids, peak, sums = ctx.saved_tensors
        cols = logits.shape[-1]
        grad = grad.float().contiguous()
        dlogits = logits if ctx.reuse else torch.empty_like(logits)
        launch(
            "cross_entropy_grad",
            logits,
            pointer(logits),
            pointer(peak),
            pointer(sums),  # its first row
            pointer(ids),
            pointer(grad),
            pointer(dlogits),
            ids.numel(),
            cols,
            ctx.first,
            1.0 - ctx.share,
            ctx.share / cols,
            dtype_code(logits),
            dtype_code(dlogits),
        )
        return dlogits, None, None, None, None
