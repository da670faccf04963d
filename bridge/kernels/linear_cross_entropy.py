"""Output layer and cross entropy in one: the logits of all tokens never exist together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from mindspeed_ms.comm.names import group_named
from mindspeed_ms.kernels import cross_entropy
from mindspeed_ms.kernels.operator import Gradient, Operator, fake_like
from mindspeed_ms.kernels.weight_gradient import accumulate_weight_gradient

Tensor = torch.Tensor

#: Bytes of logits that exist at one time.
CHUNK_BYTES = 64 << 20


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Loss per token, fp32, of target's shape, of the logits hidden @ weight^T (Wijmans et al. 2024).

    hidden: (..., width), weight: (vocabulary / ranks, width), one dtype of fp32, bf16 and fp16; target: int64
    (...,) ids of the whole vocabulary; rank r of `group` holds ids [r * n, (r + 1) * n) and gets the whole
    gradient of hidden. Logits are made `chunk_bytes` at a time, in forward and again in backward: one more
    product instead of tokens x vocabulary numbers kept. ValueError for shapes that do not fit.
    """
    _check(hidden, weight, target)
    rows = max(1, chunk_bytes // max(1, weight.shape[0] * hidden.element_size()))
    flat = hidden.reshape(-1, hidden.shape[-1])
    name = group.group_name if group is not None and group.size() > 1 else ""
    return _LINEAR_CROSS_ENTROPY(flat, weight, target.reshape(-1), name, rows)[0].reshape(target.shape)


def _check(hidden: Tensor, weight: Tensor, target: Tensor, *_: Any) -> None:
    shapes = (
        weight.dim() == 2 and hidden.shape[-1:] == weight.shape[-1:] and target.shape == hidden.shape[:-1]
    )
    if not shapes or target.is_floating_point():
        raise ValueError(
            f"linear_cross_entropy: hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and target "
            f"{tuple(target.shape)} {target.dtype} do not fit"
        )


def _chunks(hidden: Tensor, weight: Tensor, rows: int) -> Iterator[tuple[slice, Tensor]]:
    """Some tokens, and their logits."""
    for begin in range(0, hidden.shape[0], rows):
        at = slice(begin, min(begin + rows, hidden.shape[0]))
        yield at, hidden[at] @ weight.t()


def _forward(
    hidden: Tensor, weight: Tensor, target: Tensor, group: str, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    results = _fake(hidden, weight, target)
    for at, logits in _chunks(hidden, weight, rows):
        found = cross_entropy.OPERATOR(logits, target[at], 0.0, group, False)
        for whole, part in zip(results, found, strict=True):
            whole[at] = part
    return results


def _backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    peak: Tensor,
    total: Tensor,
    group: str,
    rows: int,
) -> tuple[Tensor, Tensor]:
    dhidden = fake_like(hidden)
    # Sums over chunks are kept in fp32, whatever the weights' dtype.
    dweight = torch.zeros_like(weight, dtype=peak.dtype)
    for at, logits in _chunks(hidden, weight, rows):
        cross_entropy.BACKWARD_IN_PLACE(logits, grad[at], target[at], peak[at], total[at], 0.0, group)
        dhidden[at] = logits @ weight
        accumulate_weight_gradient(hidden[at], logits, dweight)
    if group:
        dist.all_reduce(dhidden, group=group_named(group))
    return dhidden, dweight.to(weight.dtype)


def _fake(hidden: Tensor, weight: Tensor, target: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    loss = torch.empty(target.shape, dtype=wide, device=hidden.device)
    return loss, torch.empty_like(loss), torch.empty_like(loss)


_BACKWARD = Operator(
    "linear_cross_entropy_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor target, Tensor peak, "
    "Tensor total, str group, SymInt rows) -> (Tensor, Tensor)",
    decides=("hidden", "weight"),
    fake=lambda grad, hidden, weight, *_: (fake_like(hidden), fake_like(weight)),
    composite=_backward,
)


def _save(ctx: Any, args: tuple[Any, ...], results: tuple[Tensor, ...]) -> None:
    hidden, weight, target, *ctx.options = args
    ctx.save_for_backward(hidden, weight, target, *results[1:])
    ctx.mark_non_differentiable(*results[1:])


def _gradient(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    return *_BACKWARD(grad, *ctx.saved_tensors, *ctx.options), None, None, None


#: Products, and the operators of the cross entropy, which choose their own forms.
_LINEAR_CROSS_ENTROPY = Operator(
    "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor target, str group, SymInt rows) "
    "-> (Tensor loss, Tensor peak, Tensor total)",
    decides=("hidden", "weight"),
    check=_check,
    fake=_fake,
    composite=_forward,
    gradient=Gradient(_save, _gradient),
    lower=True,
)
