"""Fused operators: one public differentiable function each, on `npu` and CPU tensors.

Each has a native CPU kernel (csrc/kernels), a reference composite in torch beside it, and a MindSpore call
for Ascend.
"""

from mindspeed_ms.kernels.activation import bias_activation, bias_glu
from mindspeed_ms.kernels.attention import Segment, attention, packed_segments
from mindspeed_ms.kernels.backend import force_isa, isa
from mindspeed_ms.kernels.cached_attention import cached_attention, paged_rows
from mindspeed_ms.kernels.context_parallel import (
    context_parallel_attention,
    context_parallel_packed_attention,
)
from mindspeed_ms.kernels.cross_entropy import vocab_parallel_cross_entropy
from mindspeed_ms.kernels.dropout import bias_dropout_add
from mindspeed_ms.kernels.embedding import embedding_grad
from mindspeed_ms.kernels.grouped_matmul import grouped_matmul, grouped_weight_gradient
from mindspeed_ms.kernels.linear_cross_entropy import linear_cross_entropy
from mindspeed_ms.kernels.norm import layer_norm, rms_norm
from mindspeed_ms.kernels.optimizer import (
    adam_step,
    clip_by_norm_,
    l2_norm,
    multi_scale,
    newton_schulz,
    norm_of,
    scale_into,
    sgd_step,
)
from mindspeed_ms.kernels.permutation import (
    Rows,
    combine_rows,
    gather_rows,
    permutation,
    permute,
    unpermute,
)
from mindspeed_ms.kernels.rope import latent_key_value, latent_query, packed_positions, rope
from mindspeed_ms.kernels.router import auxiliary_scores, load_balancing_loss, topk_router
from mindspeed_ms.kernels.softmax import scaled_softmax

__all__ = [
    "Rows",
    "Segment",
    "adam_step",
    "attention",
    "auxiliary_scores",
    "bias_activation",
    "bias_dropout_add",
    "bias_glu",
    "cached_attention",
    "clip_by_norm_",
    "combine_rows",
    "context_parallel_attention",
    "context_parallel_packed_attention",
    "embedding_grad",
    "force_isa",
    "gather_rows",
    "grouped_matmul",
    "grouped_weight_gradient",
    "isa",
    "l2_norm",
    "latent_key_value",
    "latent_query",
    "layer_norm",
    "linear_cross_entropy",
    "load_balancing_loss",
    "multi_scale",
    "newton_schulz",
    "norm_of",
    "packed_positions",
    "packed_segments",
    "paged_rows",
    "permutation",
    "permute",
    "rms_norm",
    "rope",
    "scale_into",
    "scaled_softmax",
    "sgd_step",
    "topk_router",
    "unpermute",
    "vocab_parallel_cross_entropy",
]
