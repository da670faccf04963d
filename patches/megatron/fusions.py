"""``megatron.core.fusions``: activations with their bias, the end of a sub-layer, softmax, cross entropy.

The config flags that choose a fusion (``bias_activation_fusion``, ``bias_dropout_fusion``,
``masked_softmax_fusion``, ``cross_entropy_loss_fusion``) are read by Megatron before it calls these
functions, so who switches a fusion off gets Megatron's composite.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from mindspeed_ms.patches.registry import around
from mindspeed_ms.routes import takes

PASSES = (
    "torch runs it as one pass over memory for each operator; the kernel is one pass forward, one backward"
)

Tensor = torch.Tensor


@around("megatron.core.fusions.fused_bias_swiglu:bias_swiglu_impl", reason=PASSES)
def bias_swiglu(
    original: Any,
    input: Tensor,
    bias: Tensor | None,
    fp8_input_store: bool = False,
    *cpu_offload_input: Any,
    **options: Any,
) -> Tensor:
    """SiLU(first half) * second half of ``input [..., 2 f] + bias``; fp8 and offload are Megatron's."""
    from mindspeed_ms.kernels import bias_glu

    offload = any(cpu_offload_input) or any(options.values())
    if fp8_input_store or offload or not takes(input, bias):
        return original(input, bias, fp8_input_store, *cpu_offload_input, **options)
    return bias_glu(input, bias, "silu")


@around("megatron.core.fusions.fused_bias_swiglu:weighted_bias_swiglu_impl", reason=PASSES)
def weighted_swiglu(
    original: Any, input: Tensor, bias: Tensor | None, weights: Tensor, fp8_input_store: bool = False
) -> Tensor:
    """As ``bias_swiglu`` for the tokens of experts, times the router's ``weights [..., 1]``."""
    from mindspeed_ms.kernels import bias_glu

    if fp8_input_store or bias is not None or not takes(input, weights):
        return original(input, bias, weights, fp8_input_store)
    return bias_glu(input, None, "silu", weights=weights)


@around("megatron.core.fusions.fused_bias_geglu:bias_geglu_impl", reason=PASSES)
def bias_geglu(original: Any, input: Tensor, bias: Tensor | None) -> Tensor:
    """GELU (tanh form) of the first half times the second half of ``input [..., 2 f] + bias``."""
    from mindspeed_ms.kernels import bias_glu

    return bias_glu(input, bias, "gelu_tanh") if takes(input, bias) else original(input, bias)


@around(
    "megatron.core.fusions.fused_bias_geglu:weighted_bias_quick_geglu_impl", reason=PASSES, versions=">=0.15"
)
def weighted_quick_geglu(
    original: Any,
    input: Tensor,
    bias: Tensor | None,
    weights: Tensor,
    fp8_input_store: bool = False,
    linear_offset: float = 0.0,
    clamp_value: float | None = None,
) -> Tensor:
    """Quick GELU gate for experts (GPT-OSS): offset and clamp as configured, times ``weights [..., 1]``."""
    from mindspeed_ms.kernels import bias_glu

    # Megatron clamps before it adds the bias, the kernel after; and it takes one bias per token, too.
    differs = bias is not None and (clamp_value is not None or bias.dim() != 1)
    if fp8_input_store or differs or not takes(input, bias, weights):
        return original(input, bias, weights, fp8_input_store, linear_offset, clamp_value)
    return bias_glu(
        input, bias, "quick_gelu", weights=weights, linear_offset=linear_offset, clamp=clamp_value
    )


@around("megatron.core.fusions.fused_bias_gelu:bias_gelu_impl", reason=PASSES)
def bias_gelu(original: Any, *args: Any, **kwargs: Any) -> Tensor:
    """GELU (tanh form) of ``input [..., f] + bias [f]``: called as (input, bias)."""
    from mindspeed_ms.kernels import bias_activation

    if kwargs or len(args) != 2 or args[1].dim() != 1 or not takes(*args):
        return original(*args, **kwargs)
    return bias_activation(*args, "gelu_tanh")


def _bias_dropout_add(
    original: Any, x_with_bias: tuple[Tensor, Tensor | None], residual: Tensor, prob: float, training: bool
) -> Tensor:
    from mindspeed_ms.kernels import bias_dropout_add

    x, bias = x_with_bias
    fits = x.shape == residual.shape and (bias is None or bias.shape == x.shape[-1:])
    # In inference Megatron writes into x, and whoever keeps x sees the result.
    in_place = not training and not any(t is not None and t.requires_grad for t in (x, bias, residual))
    if in_place or not fits or not takes(x, bias, residual):
        return original(x_with_bias, residual, prob)
    return bias_dropout_add(x, bias, residual, prob, training)


@around("megatron.core.fusions.fused_bias_dropout:bias_dropout_add_fused_train", reason=PASSES)
def bias_dropout_add_train(
    original: Any, x_with_bias: tuple[Tensor, Tensor | None], residual: Tensor, prob: float
) -> Tensor:
    """``residual + dropout(x + bias)``; the mask is drawn as torch draws it, by the region's generator."""
    return _bias_dropout_add(original, x_with_bias, residual, prob, True)


@around("megatron.core.fusions.fused_bias_dropout:bias_dropout_add_fused_inference", reason=PASSES)
def bias_dropout_add_inference(
    original: Any, x_with_bias: tuple[Tensor, Tensor | None], residual: Tensor, prob: float
) -> Tensor:
    """``residual + x + bias``."""
    return _bias_dropout_add(original, x_with_bias, residual, prob, False)


@around(
    "megatron.core.fusions.fused_softmax:FusedScaleMaskSoftmax.forward_torch_softmax",
    reason="scale, mask and softmax are one pass over the scores instead of four",
)
def scale_mask_softmax(
    original: Any, self: Any, input: Tensor, mask: Tensor | None, softmax_offset: Tensor | None = None
) -> Tensor:
    """Probabilities of scores ``input [b, np, sq, sk]`` in its dtype.

    Megatron's own way is kept without ``masked_softmax_fusion``, for sliding windows, a softmax offset, and a
    mask function that is not its default.
    """
    from megatron.core.transformer.utils import attention_mask_func
    from mindspeed_ms.kernels import scaled_softmax

    sq, sk = input.shape[-2:]
    wanted = {(True, False): torch.float16, (False, True): torch.bfloat16}
    result = wanted.get((self.input_in_fp16, self.input_in_bf16), torch.float32)
    refused = (
        not self.scaled_masked_softmax_fusion
        or softmax_offset is not None
        or getattr(self, "window_size", None) is not None
        or (mask is not None and (self.mask_func is not attention_mask_func or mask.dtype != torch.bool))
        or input.dtype != result
        or (self.input_in_float16 and not self.softmax_in_fp32)
        or not takes(input)
    )
    if refused:
        extra = () if softmax_offset is None else (softmax_offset,)  # unknown to Megatron-Core before 0.15
        return original(self, input, mask, *extra)
    causal = mask is None and self.attn_mask_type.name == "causal" and sq > 1
    if causal and sq != sk:
        raise ValueError(f"a causal mask is for self attention only, the scores are {sq} x {sk}")
    return scaled_softmax(input, mask, 1.0 if self.scale is None else self.scale, causal=causal)


_own_logits: ContextVar[Tensor | None] = ContextVar("own logits", default=None)


@around(
    "megatron.core.models.common.language_module.language_module:LanguageModule.compute_language_model_loss",
    reason="a model shows its logits to nobody: their gradient needs no memory of its own",
)
def language_model_loss(original: Any, self: Any, labels: Tensor, logits: Tensor) -> Tensor:
    """Loss ``[b, s]`` of ``logits [s, b, vocabulary / tp]``, which the models compute, use here and drop."""
    before = _own_logits.set(logits)
    try:
        return original(self, labels, logits)
    finally:
        _own_logits.reset(before)


CROSS_ENTROPY = "the kernel keeps neither the softmax nor a float32 copy of the logits"


def _cross_entropy(logits: Tensor, target: Tensor, label_smoothing: float, group: Any) -> Tensor:
    from mindspeed_ms.kernels import vocab_parallel_cross_entropy
    from mindspeed_ms.kernels.cross_entropy import disposable

    # Megatron's own writes into float32 logits, too: nobody may count on them afterwards. 16-bit logits it
    # copies: the gradient may lie there if the model alone has them, and if what made them keeps no result.
    reuse = logits.dtype == torch.float32 or (_own_logits.get() is logits and disposable(logits))
    return vocab_parallel_cross_entropy(logits, target, label_smoothing, group, reuse_logits=reuse)


@around("megatron.core.tensor_parallel.cross_entropy:vocab_parallel_cross_entropy", reason=CROSS_ENTROPY)
def cross_entropy(
    original: Any,
    vocab_parallel_logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    tp_group: Any = None,
) -> Tensor:
    """Loss per token, float32, of ``logits [s, b, vocabulary / tp]`` and ``target [s, b]``.

    ``tp_group``, which 0.19 added: by default the tensor parallel group.
    """
    if not takes(vocab_parallel_logits) or target.device.type != "npu":
        groups = () if tp_group is None else (tp_group,)
        return original(vocab_parallel_logits, target, label_smoothing, *groups)
    if tp_group is None:
        from megatron.core.parallel_state import get_tensor_model_parallel_group

        tp_group = get_tensor_model_parallel_group()
    return _cross_entropy(vocab_parallel_logits, target, label_smoothing, tp_group)


@around("megatron.core.fusions.fused_cross_entropy:fused_vocab_parallel_cross_entropy", reason=CROSS_ENTROPY)
def fused_cross_entropy(
    original: Any, vocab_parallel_logits: Tensor, target: Tensor, tp_group: Any
) -> Tensor:
    """The same for ``cross_entropy_loss_fusion``; the gradient keeps the dtype of the logits."""
    if not takes(vocab_parallel_logits) or target.device.type != "npu":
        return original(vocab_parallel_logits, target, tp_group)
    return _cross_entropy(vocab_parallel_logits, target, 0.0, tp_group)
