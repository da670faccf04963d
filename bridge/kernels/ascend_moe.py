"""Mixture of experts on Ascend: MindSpore 2.10's grouped products and token permutation."""

from __future__ import annotations

from typing import Any

#: A mindspore.Tensor; the package is not imported for an annotation.
MsTensor = Any


def topk_router(
    logits: MsTensor,
    topk: int,
    *,
    score_function: str = "softmax",
    pre_softmax: bool = False,
    groups: int | None = None,
    group_topk: int | None = None,
    scaling_factor: float | None = None,
    expert_bias: MsTensor | None = None,
) -> tuple[MsTensor, MsTensor]:
    """Probabilities of the chosen experts and the bool map of the choice, both (tokens, experts)."""
    import mindspore as ms
    from mindspore import mint

    wide = logits.astype(ms.float32)
    scores = wide
    if score_function == "sigmoid":
        scores = mint.sigmoid(wide)
    elif pre_softmax:
        scores = mint.nn.functional.softmax(wide, -1)
    choice = scores if expert_bias is None else scores + expert_bias
    if groups:
        shape = (choice.shape[0], groups, choice.shape[1] // groups)
        quality = mint.topk(choice.reshape(shape), topk // group_topk, -1)[0].sum(-1)
        best = mint.topk(quality, group_topk, -1)[1]
        kept = mint.zeros_like(quality).scatter(1, best, mint.ones_like(best).astype(ms.float32))
        kept = kept.reshape((*kept.shape, 1)).broadcast_to(shape).reshape(choice.shape)
        choice = mint.where(kept > 0, choice, float("-inf"))
    chosen = mint.topk(choice, topk, -1)[1]
    probs = mint.gather(scores, 1, chosen)
    if score_function == "sigmoid":
        probs = probs / (probs.sum(-1, keepdim=True) + 1e-20) if topk > 1 else probs
    elif not pre_softmax:
        probs = mint.nn.functional.softmax(probs, -1)
    probs = probs * (scaling_factor or 1.0)
    dense = mint.zeros_like(wide).scatter(1, chosen, probs).astype(logits.dtype)
    marks = mint.zeros_like(wide).scatter(1, chosen, mint.ones_like(probs))
    return dense, marks.astype(ms.bool_)


def permute(tokens: MsTensor, experts: MsTensor) -> tuple[MsTensor, MsTensor]:
    """ops.moe_token_permute: rows sorted by expert, and where row i of (token, choice) has gone.

    tokens (n, hidden), experts int32 (n, topk) as the router numbers them.
    """
    from mindspore import ops

    return ops.moe_token_permute(tokens, experts)


def unpermute(rows: MsTensor, places: MsTensor, probs: MsTensor) -> MsTensor:
    """ops.moe_token_unpermute: each token's rows summed, weighted with probs (tokens, topk) in rows' dtype.

    `places` int32 from :func:`permute`. Without probs the operator takes topk for 1 and sums nothing.
    """
    from mindspore import ops

    return ops.moe_token_unpermute(rows, places, probs)


def unpermute_backward(
    rows: MsTensor, places: MsTensor, probs: MsTensor, grad: MsTensor
) -> tuple[MsTensor, None, MsTensor]:
    """Gradients of :func:`unpermute` for rows and probs."""
    from mindspore.ops import auto_generate

    drows, dprobs = auto_generate.moe_token_unpermute_grad(rows, grad, places, probs, False, None)
    return drows, None, dprobs


def gather_rows(x: MsTensor, index: MsTensor) -> MsTensor:
    """IndexSelect of rows, for maps with another number of experts for each token, or padded ones."""
    from mindspore import mint

    return mint.index_select(x, 0, index)


def combine_rows(x: MsTensor, index: MsTensor, into: int, weights: MsTensor | None = None) -> MsTensor:
    """IndexAdd of rows into (into, columns), summed in fp32."""
    import mindspore as ms
    from mindspore import mint

    rows = x.astype(ms.float32)
    if weights is not None:
        rows = rows * weights.reshape((-1, 1)).astype(ms.float32)
    base = mint.zeros((into, x.shape[1]), dtype=ms.float32)
    return mint.index_add(base, 0, index, rows).astype(x.dtype)


def grouped_matmul(x: MsTensor, weights: MsTensor, ends: MsTensor, *, turned: bool = False) -> MsTensor:
    """grouped_matmul_v4 of x (rows, k), group i ending at row ends[i] (int64), and weights (groups, k, n)."""
    from mindspore.ops import auto_generate

    matrices = weights.swapaxes(1, 2) if turned else weights
    return auto_generate.grouped_matmul_v4([x], [matrices], group_list=ends, split_item=3, group_type=0)[0]


def grouped_matmul_backward(
    x: MsTensor, weights: MsTensor, ends: MsTensor, grad: MsTensor, *, turned: bool = False
) -> tuple[MsTensor, MsTensor, None]:
    """Gradients of x and weights: another grouped product, and grouped_matmul_add_ into fp32."""
    import mindspore as ms
    from mindspore import mint
    from mindspore.ops import auto_generate

    dx = grouped_matmul(grad, weights, ends, turned=not turned)
    dweights = mint.zeros(weights.shape, dtype=ms.float32)
    pair = (grad, x) if turned else (x, grad)
    auto_generate.grouped_matmul_add_(*pair, ends, dweights)
    return dx, dweights.astype(weights.dtype), None
