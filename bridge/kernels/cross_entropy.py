"""Cross entropy over logits whose vocabulary may be split over a tensor-parallel group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from mindspeed_ms.comm.names import group_named
from mindspeed_ms.kernels.backend import dtype_code, native, pointer
from mindspeed_ms.kernels.operator import Gradient, Operator, cast, fake_like

Tensor = torch.Tensor


def vocab_parallel_cross_entropy(
    logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    group: dist.ProcessGroup | None = None,
    *,
    reuse_logits: bool = False,
) -> Tensor:
    """Loss per token, fp32, of target's shape (Megatron's vocab_parallel_cross_entropy).

    logits: (..., vocabulary / ranks), fp32, bf16 or fp16; target: int64 (...,) ids in the whole vocabulary;
    rank r of `group` holds ids [r * n, (r + 1) * n). Label smoothing is Megatron's: the smoothed part is
    label_smoothing * K / (K - 1) over the K columns of this rank. Neither the softmax nor an fp32 copy of the
    logits is kept; with `reuse_logits` the gradient overwrites the logits, for callers that own them.
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"cross entropy: label_smoothing must be in [0, 1), got {label_smoothing}")
    name = group.group_name if group is not None and group.size() > 1 else ""
    return OPERATOR(logits, target, float(label_smoothing), name, reuse_logits)[0]


def _check(logits: Tensor, target: Tensor, *_: Any) -> None:
    if target.shape != logits.shape[:-1] or target.is_floating_point():
        raise ValueError(
            f"cross entropy: target {tuple(target.shape)} {target.dtype} does not fit logits "
            f"{tuple(logits.shape)}, expected integers, one a token"
        )


_DISPOSABLE = "is_disposable"
"""Attribute of logits that nobody keeps."""


def mark_disposable(logits: Tensor) -> Tensor:
    """Marks logits that nobody keeps, not even what made them: their gradient may overwrite them."""
    setattr(logits, _DISPOSABLE, True)
    return logits


def disposable(logits: Tensor) -> bool:
    """Whether :func:`mark_disposable` was called on this very tensor."""
    return getattr(logits, _DISPOSABLE, False)


@dataclass(frozen=True)
class Vocabulary:
    """The columns that this rank has of the whole vocabulary."""

    group: dist.ProcessGroup | None
    first: int
    cols: int
    share: float
    """Of Megatron's label smoothing, over the columns of this rank."""

    @classmethod
    def of(cls, logits: Tensor, label_smoothing: float, name: str) -> Vocabulary:
        """`name`: torch's of the group, empty for one rank."""
        group = group_named(name) if name else None
        cols = logits.shape[-1]
        share = label_smoothing * cols / (cols - 1) if label_smoothing > 0.0 else 0.0
        return cls(group, group.rank() * cols if group else 0, cols, share)

    def reduce(self, values: Tensor, operation: Any = dist.ReduceOp.SUM) -> None:
        """In place, over the ranks."""
        if self.group is not None:
            dist.all_reduce(values, op=operation, group=self.group)


# ---- composite


def cross_entropy_composite(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The reference in torch operators, for one rank; autograd differentiates it."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logp = torch.log_softmax(wide, dim=-1)
    loss = -logp.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    if label_smoothing > 0.0:
        share = label_smoothing * logits.shape[-1] / (logits.shape[-1] - 1)
        loss = (1.0 - share) * loss - share * logp.mean(dim=-1)
    return loss


def _composite(
    logits: Tensor, target: Tensor, label_smoothing: float, group: str, reuse_logits: bool
) -> tuple[Tensor, Tensor, Tensor]:
    vocabulary = Vocabulary.of(logits, label_smoothing, group)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    peak = wide.amax(-1)
    vocabulary.reduce(peak, dist.ReduceOp.MAX)
    shifted = wide - peak.unsqueeze(-1)
    ids, mine = _own_ids(target, vocabulary)
    chosen = shifted.gather(-1, ids.unsqueeze(-1)).squeeze(-1) * mine
    sums = torch.stack((shifted.exp().sum(-1), chosen))
    vocabulary.reduce(sums)
    total, chosen = sums[0].log(), sums[1]
    loss, share = total - chosen, vocabulary.share
    if share:
        loss = (1.0 - share) * loss - share * (shifted.mean(-1) - total)
    return loss, peak.reshape(-1), sums[0].reshape(-1).clone()


def _composite_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    peak: Tensor,
    total: Tensor,
    label_smoothing: float,
    group: str,
) -> Tensor:
    vocabulary = Vocabulary.of(logits, label_smoothing, group)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    shape = (*target.shape, 1)
    dlogits = (wide - peak.view(shape)).exp() / total.view(shape) - vocabulary.share / vocabulary.cols
    ids, mine = _own_ids(target, vocabulary)
    hit = mine.unsqueeze(-1).to(dlogits.dtype) * (vocabulary.share - 1.0)
    dlogits.scatter_add_(-1, ids.unsqueeze(-1), hit)
    return (dlogits * grad.unsqueeze(-1)).to(logits.dtype)


def _own_ids(target: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Column of each target, and whether it is one of this rank's."""
    ids = target - vocabulary.first
    return ids.clamp(0, vocabulary.cols - 1), (ids >= 0) & (ids < vocabulary.cols)


# ---- csrc


def _csrc(
    logits: Tensor, target: Tensor, label_smoothing: float, group: str, reuse_logits: bool
) -> tuple[Tensor, Tensor, Tensor]:
    vocabulary = Vocabulary.of(logits, label_smoothing, group)
    logits, ids = logits.contiguous(), target.to(torch.int64).contiguous()
    rows, cols, smoothing, code = ids.numel(), vocabulary.cols, label_smoothing > 0.0, dtype_code(logits)
    wide: dict[str, Any] = {"dtype": torch.float32, "device": logits.device}
    peak = torch.empty(rows, **wide)
    sums = torch.empty((3 if smoothing else 2, rows), **wide)
    if vocabulary.group is not None:
        native().cross_entropy_max(pointer(logits), pointer(peak), rows, cols, code)
        vocabulary.reduce(peak, dist.ReduceOp.MAX)
    native().cross_entropy_sums(
        logits=pointer(logits),
        peak=pointer(peak),
        target=pointer(ids),
        sums=pointer(sums),
        rows=rows,
        cols=cols,
        first=vocabulary.first,
        smoothing=smoothing,
        whole=vocabulary.group is None,
        dtype=code,
    )
    # The sum of logits stays local: Megatron smooths over the rank's own columns.
    vocabulary.reduce(sums[:2])
    loss = torch.empty(target.shape, **wide)
    native().cross_entropy_loss(pointer(sums), pointer(loss), rows, cols, vocabulary.share)
    return loss, peak, sums[0].clone()


def _csrc_into(
    dlogits: Tensor,
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    peak: Tensor,
    total: Tensor,
    label_smoothing: float,
    group: str,
) -> None:
    vocabulary = Vocabulary.of(logits, label_smoothing, group)
    ids, grad = target.to(torch.int64).contiguous(), grad.float().contiguous()
    native().cross_entropy_grad(
        logits=pointer(logits),
        peak=pointer(peak),
        sum=pointer(total),
        target=pointer(ids),
        grad=pointer(grad),
        dlogits=pointer(dlogits),
        rows=ids.numel(),
        cols=vocabulary.cols,
        first=vocabulary.first,
        on=1.0 - vocabulary.share,
        everywhere=vocabulary.share / vocabulary.cols,
        dtype=dtype_code(logits),
        out_dtype=dtype_code(dlogits),
    )


def _csrc_backward(grad: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    logits = logits.contiguous()
    dlogits = torch.empty_like(logits)
    _csrc_into(dlogits, grad, logits, *rest)
    return dlogits


# ---- MindSpore: CrossEntropyLoss and CrossEntropyLossGrad, for one rank without smoothing


def _mindspore(logits: Any, target: Any, *_: Any) -> tuple[Any, Any, Any]:
    import mindspore as ms
    from mindspore import mint
    from mindspore.ops import auto_generate

    rows = cast(logits, ms.float32).reshape((-1, logits.shape[-1]))
    ids = cast(target, ms.int64).reshape((-1,))
    loss = auto_generate.cross_entropy_loss(rows, ids, None, "none", -100, 0.0)[0]
    # log sum exp by what the operator gives: its log-probabilities are as large as the logits.
    peak = loss + mint.gather(rows, 1, ids.reshape((-1, 1))).reshape((-1,))
    return loss.reshape(target.shape), peak, mint.ones_like(peak)


def _mindspore_backward(
    grad: Any, logits: Any, target: Any, peak: Any, total: Any, label_smoothing: float, group: str
) -> Any:
    import mindspore as ms
    from mindspore import mint
    from mindspore.ops import auto_generate

    rows = cast(logits, ms.float32).reshape((-1, logits.shape[-1]))
    logp = rows - (peak + mint.log(total)).reshape((-1, 1))
    ids = cast(target, ms.int64).reshape((-1,))
    options = (None, None, None, "none", -100, 0.0)
    dlogits = auto_generate.cross_entropy_loss_grad_op(grad.reshape((-1,)), logp, ids, *options)
    return cast(dlogits, logits.dtype).reshape(logits.shape)


def _refused(label_smoothing: float, group: str) -> str | None:
    if group:
        return "the operator knows the vocabulary of one rank"
    return "the operator smooths labels in another way than Megatron" if label_smoothing else None


# ---- operators


def _fake(
    logits: Tensor, target: Tensor, label_smoothing: float, group: str, reuse_logits: bool
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    loss = torch.empty(target.shape, dtype=wide, device=logits.device)
    return loss, loss.new_empty(target.numel()), loss.new_empty(target.numel())


_BACKWARD = Operator(
    "vocab_parallel_cross_entropy_backward(Tensor grad, Tensor logits, Tensor target, Tensor peak, "
    "Tensor total, float label_smoothing, str group) -> Tensor",
    decides=("logits",),
    fake=lambda grad, logits, *_: fake_like(logits),
    composite=_composite_backward,
    csrc=_csrc_backward,
    mindspore=_mindspore_backward,
    refusal=lambda grad, logits, target, peak, total, *rest: _refused(*rest),
)


def _in_place(backward: Any) -> Any:
    """The form that overwrites the logits, of the one that makes a tensor."""

    def call(logits: Tensor, grad: Tensor, *rest: Any) -> None:
        logits.copy_(backward(grad, logits, *rest))

    return call


BACKWARD_IN_PLACE = Operator(
    "vocab_parallel_cross_entropy_backward_(Tensor(a!) logits, Tensor grad, Tensor target, Tensor peak, "
    "Tensor total, float label_smoothing, str group) -> ()",
    decides=("logits",),
    fake=lambda *_: None,
    composite=_in_place(_composite_backward),
    csrc=lambda logits, grad, *rest: _csrc_into(logits, grad, logits, *rest),
    mindspore=_in_place(_mindspore_backward),
    refusal=lambda logits, grad, target, peak, total, *rest: _refused(*rest),
)


def _save(ctx: Any, args: tuple[Any, ...], results: tuple[Tensor, ...]) -> None:
    logits, target, *ctx.options, reuse = args
    _, peak, total = results
    ctx.reuse = reuse and logits.is_contiguous()
    ctx.save_for_backward(logits, target, peak, total)
    ctx.mark_non_differentiable(peak, total)


def _gradient(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    rest = (None,) * 4
    if grad is None:
        return None, *rest
    logits, *saved = ctx.saved_tensors
    if not ctx.reuse:
        return _BACKWARD(grad, logits, *saved, *ctx.options), *rest
    logits = logits.detach()
    BACKWARD_IN_PLACE(logits, grad, *saved, *ctx.options)
    return logits, *rest


OPERATOR = Operator(
    "vocab_parallel_cross_entropy(Tensor logits, Tensor target, float label_smoothing, str group, "
    "bool reuse_logits) -> (Tensor loss, Tensor peak, Tensor total)",
    decides=("logits",),
    check=_check,
    fake=_fake,
    composite=_composite,
    csrc=_csrc,
    mindspore=_mindspore,
    refusal=lambda logits, target, label_smoothing, group, reuse: _refused(label_smoothing, group),
    gradient=Gradient(_save, _gradient),
)
