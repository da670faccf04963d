"""The fused operators on Ascend: MindSpore 2.10's own ones, on MindSpore tensors.

One function per kernel of this package, with its name and order of arguments; which kernel takes which is
said in :mod:`mindspeed_ms.kernels.dispatch`. No Ascend device was at hand: the tests run them, forward and
backward, through MindSpore's shape and dtype inference. MindSpore is imported when a call is made.
"""

from __future__ import annotations

from typing import Any

#: A mindspore.Tensor; the package is not imported for an annotation.
MsTensor = Any


def rms_norm(
    x: MsTensor,
    weight: MsTensor,
    eps: float = 1e-5,
    *,
    zero_centered: bool = False,
    residual: MsTensor | None = None,
) -> MsTensor | tuple[MsTensor, MsTensor]:
    """ops.rms_norm, with a residual ops.add_rms_norm: then (y, x + residual)."""
    from mindspore import ops

    gamma, _ = _parameters(x, weight, None, zero_centered)
    if residual is None:
        return ops.rms_norm(x, gamma, eps)[0]
    y, _, total = ops.add_rms_norm(x, residual, gamma, eps)
    return y, total


def layer_norm(
    x: MsTensor,
    weight: MsTensor,
    bias: MsTensor,
    eps: float = 1e-5,
    *,
    zero_centered: bool = False,
    residual: MsTensor | None = None,
) -> MsTensor | tuple[MsTensor, MsTensor]:
    """LayerNormExt, after an add when there is a residual: then (y, x + residual)."""
    from mindspore.ops import auto_generate

    total = x if residual is None else x + residual
    gamma, beta = _parameters(x, weight, bias, zero_centered)
    y = auto_generate.layer_norm_ext_op(total, (x.shape[-1],), gamma, beta, eps)[0]
    return y if residual is None else (y, total)


def _parameters(
    x: MsTensor, weight: MsTensor | None, bias: MsTensor | None, zero_centered: bool
) -> tuple[MsTensor, MsTensor]:
    """Scale and shift of a norm in x's dtype, as its operators want them."""
    from mindspore import mint

    width = x.shape[-1:]
    gamma = mint.ones(width, dtype=x.dtype) if weight is None else weight.astype(x.dtype)
    beta = mint.zeros(width, dtype=x.dtype) if bias is None else bias.astype(x.dtype)
    return gamma + 1 if zero_centered and weight is not None else gamma, beta


def bias_activation(x: MsTensor, bias: MsTensor | None, activation: str = "gelu_tanh") -> MsTensor:
    """GeluExt (tanh and erf), SiLU, or the products that make up quick GELU and squared ReLU."""
    return _activate(x if bias is None else x + bias.astype(x.dtype), activation)


def bias_glu(
    x: MsTensor,
    bias: MsTensor | None = None,
    activation: str = "silu",
    *,
    weights: MsTensor | None = None,
    linear_offset: float = 0.0,
    clamp: float | None = None,
) -> MsTensor:
    """ops.swiglu for the plain SwiGLU, else the activation on the gate times the linear half."""
    from mindspore import mint, ops

    y = x if bias is None else x + bias.astype(x.dtype)
    if activation == "silu" and linear_offset == 0.0 and clamp is None:
        y = ops.swiglu(y, -1)
    else:
        gate, linear = mint.chunk(y, 2, -1)
        if clamp is not None:
            gate, linear = mint.clamp(gate, max=clamp), mint.clamp(linear, min=-clamp, max=clamp)
        y = _activate(gate, activation) * (linear + linear_offset)
    return y if weights is None else (y * weights.reshape((*y.shape[:-1], 1))).astype(x.dtype)


def _activate(x: MsTensor, activation: str) -> MsTensor:
    from mindspore import mint

    functional = mint.nn.functional
    if activation in ("gelu", "gelu_tanh"):
        return functional.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")
    if activation == "silu":
        return functional.silu(x)
    if activation == "quick_gelu":
        return x * mint.sigmoid(x * 1.702)
    if activation == "squared_relu":
        return mint.square(functional.relu(x))
    raise ValueError(f"unknown activation {activation!r}")


def scaled_softmax(
    x: MsTensor, mask: MsTensor | None = None, scale: float = 1.0, *, causal: bool = False
) -> MsTensor:
    """fp32 softmax of the scaled, masked scores."""
    import mindspore as ms
    from mindspore import mint, ops

    scores = x.astype(ms.float32) * scale
    if mask is not None:
        scores = ops.masked_fill(scores, mask, -10000.0)
    if causal:
        queries, keys = x.shape[-2:]
        later = mint.triu(mint.ones((queries, keys), dtype=ms.float32), keys - queries + 1).astype(ms.bool_)
        scores = ops.masked_fill(scores, later, float("-inf"))
    return mint.nn.functional.softmax(scores, -1).astype(x.dtype)


def rope(x: MsTensor, cos: MsTensor, sin: MsTensor, layout: str = "half") -> MsTensor:
    """ops.rotary_position_embedding on the first cos.shape[-1] channels; x (s, b, h, d), cos (s, 1, 1, r)."""
    from mindspore import mint, ops

    modes = {"half": 0, "interleaved": 1}
    rotary, width = cos.shape[-1], x.shape[-1]
    # Not x[..., :rotary]: indexing under MindSpore's autograd engine (2.10) ends the process.
    turned = x if rotary == width else mint.narrow(x, -1, 0, rotary)
    if layout == "to_half":
        shape = turned.shape
        turned = turned.reshape((*shape[:-1], rotary // 2, 2)).swapaxes(-1, -2).reshape(shape)
        layout = "half"
    turned = ops.rotary_position_embedding(turned, cos.astype(x.dtype), sin.astype(x.dtype), modes[layout])
    if rotary == width:
        return turned
    return mint.cat((turned, mint.narrow(x, -1, rotary, width - rotary)), -1)


def vocab_parallel_cross_entropy(
    logits: MsTensor, target: MsTensor, label_smoothing: float = 0.0
) -> MsTensor:
    """CrossEntropyLoss per token, fp32, over the whole vocabulary (a group of one rank).

    logits (..., v), target (...,).

    The smoothing of the operator is share / K over all K classes; Megatron's is the same sum with the share
    scaled by K / (K - 1).
    """
    import mindspore as ms
    from mindspore.ops import auto_generate

    classes, shape = logits.shape[-1], target.shape
    share = label_smoothing * classes / (classes - 1) if label_smoothing else 0.0
    rows = logits.astype(ms.float32).reshape((-1, classes))
    ids = target.astype(ms.int64).reshape((-1,))
    return auto_generate.cross_entropy_loss(rows, ids, None, "none", -100, share)[0].reshape(shape)


def bias_dropout_add(x: MsTensor, bias: MsTensor | None, residual: MsTensor, probability: float) -> MsTensor:
    """residual + DropoutExt(x + bias)."""
    from mindspore import mint

    y = x if bias is None else x + bias.astype(x.dtype)
    if probability == 0.0:
        return residual + y
    return residual + mint.nn.functional.dropout(y, probability, training=True)


def embedding_grad(grad: MsTensor, ids: MsTensor, table_rows: int, padding_idx: int = -1) -> MsTensor:
    """EmbeddingDenseBackward."""
    from mindspore.ops import auto_generate

    return auto_generate.embedding_dense_backward_op(grad, ids, table_rows, padding_idx, False)


def adam_step(
    param: MsTensor,
    grad: MsTensor,
    exp_avg: MsTensor,
    exp_avg_sq: MsTensor,
    step: MsTensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    maximize: bool = False,
) -> None:
    """AdamW in place on one flat buffer; `step` is a device tensor, so the host is not waited for."""
    from mindspore.ops import auto_generate

    auto_generate.adamw_op(
        param, exp_avg, exp_avg_sq, exp_avg_sq, grad, step, lr, *betas, weight_decay, eps, False, maximize
    )


def l2_norm(flat: MsTensor) -> MsTensor:
    """Euclidean norm of a flat buffer, a 0-d tensor."""
    from mindspore import mint

    return mint.norm(flat)
