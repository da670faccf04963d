"""Attention on Ascend: MindSpore 2.10's flash attention, on MindSpore tensors.

Whole calls go through ops.speed_fusion_attention, which draws its own dropout. The steps of a
context-parallel ring use the primitives beneath it: their results carry maximum and sum of the softmax, by
which ops.ring_attention_update merges them; backward gives every step those of the merged result, as the
gradient of a part of the keys depends on the whole row only through them.
"""

from __future__ import annotations

import math
from typing import Any

#: A mindspore.Tensor; the package is not imported for an annotation.
MsTensor = Any

#: Compressed masks of the operator have this side, whatever the sequence's length.
MASK_SIDE = 2048
NO_BOUND = 2**31 - 1
ALL, BOTTOM_RIGHT_CAUSAL, BAND = 1, 3, 4


def _pattern(causal: bool, mask: MsTensor | None, window: tuple[int, int] | None) -> dict[str, Any]:
    """Mask, sparse mode and bounds of the operator; True in a mask hides a key."""
    import mindspore as ms
    from mindspore import mint

    if mask is not None:
        return {"atten_mask": mask, "sparse_mode": ALL, "pre_tokens": NO_BOUND, "next_tokens": NO_BOUND}
    if not causal and window is None:
        return {"atten_mask": None, "sparse_mode": 0, "pre_tokens": NO_BOUND, "next_tokens": NO_BOUND}
    later = mint.triu(mint.ones((MASK_SIDE, MASK_SIDE), dtype=ms.float32), 1).astype(ms.bool_)
    if window is None:
        return {
            "atten_mask": later,
            "sparse_mode": BOTTOM_RIGHT_CAUSAL,
            "pre_tokens": NO_BOUND,
            "next_tokens": 0,
        }
    left, right = (NO_BOUND if bound < 0 else bound for bound in window)
    bounds = {"pre_tokens": left, "next_tokens": 0 if causal else right}
    return {"atten_mask": later, "sparse_mode": BAND, **bounds}


def _padded(value: MsTensor, width: int) -> MsTensor:
    """value with zero channels up to `width`: the operator wants query, key and value alike."""
    from mindspore import mint

    if value.shape[-1] == width:
        return value
    return mint.cat((value, mint.zeros((*value.shape[:-1], width - value.shape[-1]), dtype=value.dtype)), -1)


def attention(
    query: MsTensor,
    key: MsTensor,
    value: MsTensor,
    *,
    causal: bool = False,
    mask: MsTensor | None = None,
    window: tuple[int, int] | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    cu_seqlens_q: tuple[int, ...] | None = None,
    cu_seqlens_k: tuple[int, ...] | None = None,
) -> tuple[MsTensor, MsTensor]:
    """Output and log-sum-exp of query (s, b, heads, d), key and value (sk, b, kv_heads, d); fp16 or bf16.

    Packed sequences are (t, heads, d), cu_seqlens without the leading 0. The output has the width of value,
    which may be smaller than d (multi-latent attention). log-sum-exp: fp32 (b, heads, s), packed (t, heads).
    """
    from mindspore import mint, ops

    packed = cu_seqlens_q is not None
    width = query.shape[-1]
    value_width = value.shape[-1]
    value = _padded(value, width)
    pattern = _pattern(causal, mask, window)
    results = ops.speed_fusion_attention(
        query if packed else query.reshape((*query.shape[:2], -1)),
        key if packed else key.reshape((*key.shape[:2], -1)),
        value if packed else value.reshape((*value.shape[:2], -1)),
        query.shape[-2],
        "TND" if packed else "SBH",
        scale=1.0 / math.sqrt(width) if scale is None else scale,
        keep_prob=1.0 - dropout,
        actual_seq_qlen=cu_seqlens_q,
        actual_seq_kvlen=cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k,
        **pattern,
    )
    out, peak, total = results[:3]
    out, lse = out.reshape(query.shape), peak + mint.log(total)
    return mint.narrow(out, -1, 0, value_width), mint.select(lse, -1, 0)


def ring_step(
    query: MsTensor, key: MsTensor, value: MsTensor, *, causal: bool, scale: float
) -> tuple[MsTensor, MsTensor, MsTensor]:
    """Output of one step's keys, (s, b, heads * d), maximum and sum of its softmax, (b, heads, s, 8), fp32.

    query (s, b, heads, d), key (sk, b, kv_heads, d), value (sk, b, kv_heads, dv), dv <= d: zeros fill the
    output up to d. It is fp32 as the merge rounds to the dtype that it is given.
    """
    import mindspore as ms
    from mindspore.ops.auto_generate import gen_ops_prim

    pattern = _pattern(causal, None, None)
    operator = gen_ops_prim.FlashAttentionScore(*_settings(query, scale, pattern))
    operands = _flat(query, key, _padded(value, query.shape[-1]))
    peak, total, _, out = operator(*operands, None, None, None, pattern["atten_mask"], None, None, None)
    return out.astype(ms.float32), peak, total


def ring_merge(
    out: MsTensor,
    peak: MsTensor,
    total: MsTensor,
    step_out: MsTensor,
    step_peak: MsTensor,
    step_total: MsTensor,
) -> tuple[MsTensor, MsTensor, MsTensor]:
    """ops.ring_attention_update of two results of :func:`ring_step` over different keys, of the same queries.

    MindSpore's page asks for positive maxima; the sum it gives, and the operator, know differences of maxima
    only.
    """
    from mindspore import ops

    return ops.ring_attention_update(out, peak, total, step_out, step_peak, step_total, None, "SBH")


def ring_step_backward(
    query: MsTensor,
    key: MsTensor,
    value: MsTensor,
    grad: MsTensor,
    out: MsTensor,
    peak: MsTensor,
    total: MsTensor,
    *,
    causal: bool,
    scale: float,
) -> tuple[MsTensor, MsTensor, MsTensor]:
    """What one step's keys give to the gradients of query, key, value.

    grad (s, b, heads, dv); out, in query's dtype, peak and total: the merged result of all steps.
    """
    from mindspore import mint
    from mindspore.ops.auto_generate import gen_ops_prim

    width, value_width = query.shape[-1], value.shape[-1]
    pattern = _pattern(causal, None, None)
    operator = gen_ops_prim.FlashAttentionScoreGrad(*_settings(query, scale, pattern))
    inputs = (query, key, _padded(value, width))
    operands = _flat(*inputs, _padded(grad, width))
    grads = operator(*operands, None, None, None, pattern["atten_mask"], peak, total, None, out)
    dquery, dkey, dvalue = (g.reshape(t.shape) for g, t in zip(grads[:3], inputs, strict=True))
    return dquery, dkey, mint.narrow(dvalue, -1, 0, value_width)


def _flat(*tensors: MsTensor) -> list[MsTensor]:
    return [t.reshape((*t.shape[:2], -1)) for t in tensors]


def _settings(query: MsTensor, scale: float, pattern: dict[str, Any]) -> tuple[Any, ...]:
    bounds = (pattern["pre_tokens"], pattern["next_tokens"])
    return (query.shape[-2], 1.0, scale, *bounds, 0, "SBH", pattern["sparse_mode"])
