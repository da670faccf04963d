"""Attention on Ascend: MindSpore 2.10's SpeedFusionAttention and its gradient.

The operator draws the mask of its dropout from a seed, so that the gradient draws the same again. It gives
maximum and sum of the softmax, of which log-sum-exp is kept: the gradient needs them in the quotient
exp(score - maximum) / sum only, and so takes log-sum-exp for the maximum and 1 for the sum.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import torch
from mindspeed_ms.device.mindspore import number
from mindspeed_ms.kernels.attention.plan import Plan, Sequences, sizes, tiles

LAYOUTS = {"sbhd": "SBH", "bshd": "BSND", "bhsd": "BNSD"}
"""Layout -> the operator's name of it; packed sequences are "TND"."""

#: Compressed masks of the operator have this side, whatever the sequence's length.
MASK_SIDE = 2048
NO_BOUND = 2**31 - 1
ALL, BOTTOM_RIGHT_CAUSAL, BAND = 1, 3, 4
LANES = 8
"""Maximum and sum come and go eight times the same."""


def forward(query: Any, key: Any, value: Any, mask: Any, *options: Any) -> tuple[Any, Any]:
    """Output, and log-sum-exp of the scores."""
    from mindspore import mint
    from mindspore.ops import auto_generate

    plan = Plan(*options)
    width = query.shape[-1]
    operands = _operands(plan, query, key, padded(value, width))
    settings = _settings(plan, query, key, mask)
    found = auto_generate.speed_fusion_attention_op(
        *operands, *_heads(plan, query), *_seed(plan), **settings, scale=plan.scale
    )
    peak, total = (mint.select(lanes, -1, 0) for lanes in found[1:3])
    out, lse = found[0].reshape(query.shape), peak + mint.log(total)
    if plan.segments is not None:
        lse = mint.transpose(lse, 0, 1).reshape((1, *lse.shape[::-1]))
    return narrowed(out, value.shape[-1]), lse


def backward(
    dout: Any, dlse: Any, query: Any, key: Any, value: Any, mask: Any, out: Any, lse: Any, *options: Any
) -> tuple[Any, Any, Any]:
    """Gradients of query, key and value."""
    from mindspore import mint
    from mindspore.ops import auto_generate

    plan = Plan(*options)
    width = query.shape[-1]
    wide_value = padded(value, width)
    if plan.segments is not None:
        lse = mint.transpose(lse.reshape(lse.shape[1:]), 0, 1)
    peak = mint.tile(lse.reshape((*lse.shape, 1)), (*(1,) * lse.ndim, LANES))
    seed, offset = _seed(plan)
    grads = auto_generate.speed_fusion_attention_grad_op(
        *_operands(plan, query, key, wide_value, padded(dout, width)),
        *_heads(plan, query),
        softmax_max=peak,
        softmax_sum=_ones(peak.shape),
        attention_in=_operands(plan, padded(out, width))[0],
        seed=seed,
        offset=offset,
        numels=_numels(plan, query, key),
        scale_value=plan.scale,
        **_settings(plan, query, key, mask),
    )
    dquery, dkey, dvalue = (
        g.reshape(t.shape) for g, t in zip(grads[:3], (query, key, wide_value), strict=True)
    )
    return dquery, dkey, narrowed(dvalue, value.shape[-1])


def refusal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, *options: Any
) -> str | None:
    """Why the operator does not take this call, or None."""
    plan = Plan(*options)
    sequences = plan.sequences(query, key)
    width, windowed = query.shape[-1], plan.left >= 0 or plan.right > 0
    tiled = tiles(sequences, sizes(query, plan.layout)[1], sizes(key, plan.layout)[1])
    aligned = all(s[5] == s[4] - s[2] for s in sequences)
    reasons = (
        (not query.dtype == key.dtype == value.dtype, "query, key and value have different dtypes"),
        (query.dtype == torch.float32, "the operator takes 16-bit types"),
        (plan.softcap, "the operator has no soft cap"),
        (plan.differentiable_lse, "the operator has no gradient of the log-sum-exp"),
        (width % 16 or width > 512, "the operator takes head dimensions of multiples of 16 up to 512"),
        (value.shape[-1] > width, "the operator takes no values wider than the keys"),
        (not (tiled and sequences), "the operator takes packed sequences without padding, none empty"),
        (plan.segments is not None and windowed, "the operator takes no window over packed sequences"),
        ((windowed or plan.right == 0) and not aligned, "the operator aligns last tokens"),
    )
    return next((reason for refused, reason in reasons if refused), None)


def _operands(plan: Plan, *tensors: Any) -> list[Any]:
    """As the operator's layout has them."""
    if plan.segments is not None:
        return [t.reshape(t.shape[1:]) for t in tensors]
    return [t.reshape((*t.shape[:2], -1)) for t in tensors] if plan.layout == "sbhd" else list(tensors)


def _heads(plan: Plan, query: Any) -> tuple[int, str]:
    return sizes(query, plan.layout)[2], "TND" if plan.segments is not None else LAYOUTS[plan.layout]


def _seed(plan: Plan) -> tuple[Any, Any]:
    return number(plan.seed % 2**31), number(0)


def _numels(plan: Plan, query: Any, key: Any) -> Any:
    """Elements of the mask of the dropout."""
    heads = sizes(query, plan.layout)[2]
    return number(sum(heads * s[2] * s[4] for s in plan.sequences(query, key)))


def _settings(plan: Plan, query: Any, key: Any, mask: Any) -> dict[str, Any]:
    """Dropout, mask, and where packed sequences end."""
    sequences = plan.sequences(query, key)
    found = {"keep_prob": 1.0 - plan.drop / 65536, **_pattern(plan, sequences, mask)}
    if plan.segments is not None:
        found["actual_seq_qlen"] = tuple(q + s for _, q, s, _, _, _ in sequences)
        found["actual_seq_kvlen"] = tuple(k + sk for _, _, _, k, sk, _ in sequences)
    return found


def _pattern(plan: Plan, sequences: Sequences, mask: Any) -> dict[str, Any]:
    """Mask, sparse mode and bounds of the operator; True in a mask hides a key."""
    bounded = plan.left >= 0 or plan.right >= 0
    if mask is not None:
        if bounded:
            from mindspore import mint

            mask = mint.logical_or(mask, _hidden(plan, sequences[0]))
        return {"atten_mask": mask, "sparse_mode": ALL, "pre_tokens": NO_BOUND, "next_tokens": NO_BOUND}
    if not bounded:
        return {"atten_mask": None, "sparse_mode": 0, "pre_tokens": NO_BOUND, "next_tokens": NO_BOUND}
    causal = plan.left < 0 and plan.right == 0
    left, right = (NO_BOUND if bound < 0 else bound for bound in (plan.left, plan.right))
    return {
        "atten_mask": compressed_mask(),
        "sparse_mode": BOTTOM_RIGHT_CAUSAL if causal else BAND,
        "pre_tokens": left,
        "next_tokens": right,
    }


@lru_cache(maxsize=4)
def _ones(shape: tuple[int, ...]) -> Any:
    """Sums of a softmax that log-sum-exp has in it; every layer's are the same."""
    import mindspore as ms
    from mindspore import mint

    return mint.ones(shape, dtype=ms.float32)


@cache
def compressed_mask() -> Any:
    """What the operator wants beside a sparse mode: later keys, of a square of fixed size."""
    import mindspore as ms
    from mindspore import mint

    return mint.triu(mint.ones((MASK_SIDE, MASK_SIDE), dtype=ms.uint8), 1).to(ms.bool_)


def _hidden(plan: Plan, sequence: tuple[int, ...]) -> Any:
    """bool (s, sk): the keys that lie outside the window of each query."""
    from mindspore import mint

    _, _, s, _, sk, shift = sequence
    distance = mint.arange(sk).reshape((1, -1)) - mint.arange(s).reshape((-1, 1)) - shift
    left, right = (NO_BOUND if bound < 0 else bound for bound in (plan.left, plan.right))
    return mint.logical_or(mint.lt(distance, -left), mint.ge(distance, right + 1))


def narrowed(tensor: Any, width: int) -> Any:
    """Without the channels after `width`."""
    from mindspore import mint

    return tensor if tensor.shape[-1] == width else mint.narrow(tensor, -1, 0, width)


def padded(tensor: Any, width: int) -> Any:
    """With zero channels up to `width`: the operator wants query, key and value alike."""
    from mindspore import mint

    missing = width - tensor.shape[-1]
    if not missing:
        return tensor
    return mint.cat((tensor, mint.zeros((*tensor.shape[:-1], missing), dtype=tensor.dtype)), -1)
