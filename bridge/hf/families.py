"""The architectures: which flags of Megatron a config.json stands for, and which tensor is which parameter.

Parameters have the names of Megatron's local layers: ``plan.py`` translates those of Transformer Engine's
fused layers to them. Keys of a layer follow ``Family.layer``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.hf.config import Config, Flag
from mindspeed_ms.hf.errors import UnsupportedModelError
from mindspeed_ms.hf.layouts import Rule, Sizes, columns, gated, qkv, rows, vocabulary, whole

Flags = Iterator[Flag]


@dataclass(frozen=True)
class Family:
    """Models of one architecture. ``unused``: patterns of keys that hold nothing a parameter needs."""

    flags: Callable[[Config], Flags]
    model: Mapping[str, Rule]
    layers: Mapping[str, Rule]
    layer: str = "model.layers.{}."
    mtp: Mapping[str, Rule] | None = None
    unused: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq",)


# ---- flags


def sizes(config: Config) -> Sizes:
    """What the weight tables need to know of a model."""
    heads = config.need("num_attention_heads")
    groups = config.get("num_key_value_heads", heads)
    head = config.get("head_dim", config.need("hidden_size") // heads)
    return Sizes(config.need("num_hidden_layers"), config.need("vocab_size"), heads, groups, head)


def _rotary_base(rope: dict[str, Any]) -> Flag:
    base = float(rope["rope_theta"])
    return Flag("rotary_base", int(base) if base.is_integer() else base, f"rope_theta {rope['rope_theta']}")


def _rope(config: Config) -> Flags:
    rope = config.rope
    yield Flag("position_embedding_type", "rope", f"model_type {config.kind}")
    yield _rotary_base(rope)
    part = config.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0))
    yield Flag("rotary_percent", float(part), f"partial_rotary_factor {part}")
    kind = rope["rope_type"]
    if kind == "linear":
        factor = config.of_rope("factor")
        yield Flag("rotary_seq_len_interpolation_factor", float(factor), f"rope factor {factor}")
    elif kind == "llama3":
        names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        told = tuple(map(config.of_rope, names))
        if told != (1.0, 4.0, 8192):  # Megatron has these numbers in its code
            config.refuse(f"rope_type llama3 with {told} instead of (1, 4, 8192)")
        yield Flag("use_rope_scaling", True, "rope_type llama3")
        factor = config.of_rope("factor")
        yield Flag("rope_scaling_factor", float(factor), f"rope factor {factor}")
    elif kind != "default":
        config.refuse(f"rope_type {kind}")


def _trunk(config: Config) -> Flags:
    """A decoder with RMSNorm and SwiGLU."""
    yield from _shape(config)
    yield Flag("normalization", "RMSNorm", f"model_type {config.kind}")
    yield config.flag("norm_epsilon", "rms_norm_eps")
    yield from _swiglu(config)


def _swiglu(config: Config) -> Flags:
    config.must("hidden_act", "silu", "swish", default="silu")
    yield Flag("swiglu", True, "hidden_act silu")


def _squared_relu(config: Config) -> Flags:
    config.must("hidden_act", "relu2")
    yield Flag("squared_relu", True, "hidden_act relu2")


def _gelu(config: Config, name: str) -> Flags:
    """Gelu by tanh, which Megatron computes where it fuses the bias."""
    config.must(name, "gelu_new", "gelu_pytorch_tanh")
    yield Flag("swiglu", False, f"{name} {config.get(name)}")
    yield Flag("bias_gelu_fusion", True, f"{name} {config.get(name)}")


def _layer_norm(config: Config, epsilon: str) -> Flags:
    yield Flag("normalization", "LayerNorm", f"model_type {config.kind}")
    yield config.flag("norm_epsilon", epsilon)


def _shape(config: Config) -> Flags:
    """What every decoder with a causal mask has."""
    yield config.flag("num_layers", "num_hidden_layers")
    yield config.flag("hidden_size", "hidden_size")
    yield config.flag("num_attention_heads", "num_attention_heads")
    tied = config.tied
    yield Flag("untie_embeddings_and_output_weights", not tied, f"tie_word_embeddings {tied}")
    longest = config.need("max_position_embeddings")
    yield Flag("max_position_embeddings", longest, f"max_position_embeddings {longest}", fixed=False)
    dropout = config.get("attention_dropout", 0.0)
    yield Flag("attention_dropout", dropout, f"attention_dropout {dropout}", fixed=False)
    yield Flag("hidden_dropout", 0.0, f"model_type {config.kind}", fixed=False)


def _attention(config: Config) -> Flags:
    """Grouped-query attention with rotary embeddings."""
    size = sizes(config)
    yield Flag("group_query_attention", True, f"num_key_value_heads {size.groups}")
    yield Flag("num_query_groups", size.groups, f"num_key_value_heads {size.groups}")
    yield Flag("kv_channels", size.head, f"head_dim {size.head}")
    yield from _rope(config)


def _window(config: Config, used: bool) -> Flags:
    """A sliding window changes nothing while sequences are not longer: Megatron's is not the same mask."""
    window = config.get("sliding_window") if used else None
    if window:
        yield Flag("max_position_embeddings", window, f"sliding_window {window}")


def _dense(config: Config) -> Flags:
    yield from _trunk(config)
    yield from _attention(config)
    yield config.flag("ffn_hidden_size", "intermediate_size")


def _biases(config: Config, all_linear: bool, inputs: bool) -> Flags:
    yield Flag("add_bias_linear", all_linear, f"biases of model_type {config.kind}")
    yield Flag("add_qkv_bias", inputs, f"attention biases of model_type {config.kind}")


def _llama(config: Config) -> Flags:
    yield from _dense(config)
    attention, mlp = (bool(config.get(name, False)) for name in ("attention_bias", "mlp_bias"))
    if attention != mlp:
        config.refuse(f"attention_bias {attention} with mlp_bias {mlp}")
    yield from _biases(config, mlp, False)


def _mistral(config: Config) -> Flags:
    yield from _dense(config)
    yield from _biases(config, False, False)
    yield from _window(config, True)


def _qwen2(config: Config) -> Flags:
    yield from _dense(config)
    yield from _biases(config, False, True)
    yield from _window(config, bool(config.get("use_sliding_window", False)))


def _qwen3(config: Config) -> Flags:
    yield from _dense(config)
    config.must("attention_bias", False, default=False)
    yield from _biases(config, False, False)
    yield Flag("qk_layernorm", True, f"model_type {config.kind}")
    yield from _window(config, bool(config.get("use_sliding_window", False)))


def _experts(config: Config, count: str, width: str, pre_softmax: bool) -> Flags:
    """A router that keeps the best of a softmax over experts of ``width``."""
    yield config.flag("num_experts", count)
    yield config.flag("moe_ffn_hidden_size", width)
    yield config.flag("moe_router_topk", "num_experts_per_tok")
    yield Flag("moe_router_pre_softmax", pre_softmax, f"norm_topk_prob {not pre_softmax}")
    yield Flag("moe_router_score_function", "softmax", f"model_type {config.kind}")


def _mixtral(config: Config) -> Flags:
    yield from _mistral(config)
    yield from _experts(config, "num_local_experts", "intermediate_size", pre_softmax=False)


def _qwen_experts(config: Config) -> Flags:
    """Qwen's router, and its choice of the layers that have experts."""
    pre_softmax = not config.get("norm_topk_prob", False)
    yield from _experts(config, "num_experts", "moe_intermediate_size", pre_softmax)
    count, step = config.need("num_hidden_layers"), config.get("decoder_sparse_step", 1)
    dense = set(config.get("mlp_only_layers", []))
    pattern = [int(layer not in dense and (layer + 1) % step == 0) for layer in range(count)]
    yield Flag("moe_layer_freq", pattern, f"decoder_sparse_step {step} and mlp_only_layers {sorted(dense)}")


def _qwen2_moe(config: Config) -> Flags:
    yield from _qwen2(config)
    yield from _qwen_experts(config)
    yield config.flag("moe_shared_expert_intermediate_size", "shared_expert_intermediate_size")
    yield Flag("moe_shared_expert_gate", True, f"model_type {config.kind}")


def _qwen3_moe(config: Config) -> Flags:
    yield from _qwen3(config)
    yield from _qwen_experts(config)


def _latent_attention(config: Config) -> Flags:
    """DeepSeek's multi-latent attention, with YaRN or without."""
    config.must("attention_bias", False, default=False)
    config.must("rope_interleave", True, default=True)
    yield Flag("multi_latent_attention", True, "kv_lora_rank")
    yield Flag("qk_layernorm", True, f"model_type {config.kind}")
    rank = config.get("q_lora_rank")
    yield Flag("q_lora_rank", rank, f"q_lora_rank {rank}")
    yield config.flag("kv_lora_rank", "kv_lora_rank")
    yield config.flag("qk_head_dim", "qk_nope_head_dim")
    yield config.flag("qk_pos_emb_head_dim", "qk_rope_head_dim")
    yield config.flag("v_head_dim", "v_head_dim")
    yield Flag("position_embedding_type", "rope", f"model_type {config.kind}")
    rope = config.rope
    yield _rotary_base(rope)
    if rope["rope_type"] == "default":
        yield Flag("rope_type", "rope", "no rope_scaling")
        yield Flag("rotary_scaling_factor", 1.0, "no rope_scaling")
        yield Flag("apply_rope_fusion", False, "no rope_scaling", fixed=False)  # the fused kernel is YaRN's
        return
    if rope["rope_type"] != "yarn":
        config.refuse(f"rope_type {rope['rope_type']} in multi-latent attention")
    both = (rope.get("mscale", 1.0), rope.get("mscale_all_dim", 0.0))
    if both[0] != both[1]:  # Megatron scales the softmax by mscale, transformers by mscale_all_dim
        config.refuse(f"yarn with mscale {both[0]} and mscale_all_dim {both[1]}")
    yield Flag("rope_type", "yarn", "rope_type yarn")
    yarn = {
        "rotary_scaling_factor": float(config.of_rope("factor")),
        "mscale": float(both[0]),
        "mscale_all_dim": float(both[1]),
        "original_max_position_embeddings": int(
            rope.get("original_max_position_embeddings") or config.need("max_position_embeddings")
        ),
        "beta_fast": float(rope.get("beta_fast", 32)),
        "beta_slow": float(rope.get("beta_slow", 1)),
    }
    yield from (Flag(dest, value, f"rope_scaling's {dest} {value}") for dest, value in yarn.items())


def _first_dense(config: Config) -> Flags:
    """The first layers are dense, the others have experts."""
    count, dense = config.need("num_hidden_layers"), config.get("first_k_dense_replace", 0)
    config.must("moe_layer_freq", 1, default=1)
    pattern = [int(layer >= dense) for layer in range(count)]
    yield Flag("moe_layer_freq", pattern, f"first_k_dense_replace {dense}")
    if shared := config.get("n_shared_experts", 0):
        width = shared * config.need("moe_intermediate_size")
        yield Flag("moe_shared_expert_intermediate_size", width, f"n_shared_experts {shared}")
    scale = float(config.get("routed_scaling_factor", 1.0))
    yield Flag("moe_router_topk_scaling_factor", scale, f"routed_scaling_factor {scale}")


def _groups(config: Config, best: int) -> Flags:
    """A router that first keeps some groups of experts, by the sum of the ``best`` of each."""
    groups, kept = config.get("n_group", 1), config.get("topk_group", 1)
    if groups == 1:
        return
    of_each = config.need("num_experts_per_tok") // kept  # what Megatron adds up
    if of_each != best:
        config.refuse(f"groups of experts chosen by their best {best} (Megatron takes {of_each})")
    yield config.flag("moe_router_num_groups", "n_group")
    yield config.flag("moe_router_group_topk", "topk_group")


def _biased_router(config: Config) -> Flags:
    """A sigmoid router with a correction bias for each expert.

    Not every config.json says ``scoring_func``, and transformers does not look: the architecture has them.
    """
    config.must("scoring_func", "sigmoid", default="sigmoid")
    config.must("norm_topk_prob", True, default=True)
    yield config.flag("num_experts", "n_routed_experts")
    yield config.flag("moe_ffn_hidden_size", "moe_intermediate_size")
    yield config.flag("moe_router_topk", "num_experts_per_tok")
    yield Flag("moe_router_score_function", "sigmoid", f"model_type {config.kind}")
    yield Flag("moe_router_enable_expert_bias", True, f"model_type {config.kind}")
    yield from _groups(config, 2)
    yield from _first_dense(config)


def _deepseek(config: Config) -> Flags:
    yield from _trunk(config)
    yield from _latent_attention(config)
    yield config.flag("ffn_hidden_size", "intermediate_size")
    yield from _biases(config, False, False)


def _deepseek_v2(config: Config) -> Flags:
    yield from _deepseek(config)
    config.must("scoring_func", "softmax", default="softmax")
    yield from _experts(config, "n_routed_experts", "moe_intermediate_size", True)
    config.must("norm_topk_prob", False, default=False)
    yield from _groups(config, 1)
    yield from _first_dense(config)


def _deepseek_v3(config: Config) -> Flags:
    yield from _deepseek(config)
    yield from _biased_router(config)


def _interleaved(config: Config) -> Flags:
    yield Flag("rotary_interleaved", True, f"model_type {config.kind}")
    yield Flag(
        "apply_rope_fusion", False, f"model_type {config.kind}", fixed=False
    )  # the fused kernel is not


def _glm(config: Config) -> Flags:
    yield from _dense(config)
    yield from _biases(config, False, bool(config.get("attention_bias", False)))
    yield from _interleaved(config)


def _ernie(config: Config) -> Flags:
    yield from _dense(config)
    yield from _biases(config, bool(config.get("use_bias", False)), False)
    yield from _interleaved(config)


def _seed_oss(config: Config) -> Flags:
    yield from _dense(config)
    config.must("attention_out_bias", False, default=False)
    config.must("mlp_bias", False, default=False)
    yield from _biases(config, False, bool(config.get("attention_bias", True)))


def _smollm3(config: Config) -> Flags:
    yield from _llama(config)
    yield from _window(config, bool(config.get("use_sliding_window", False)))
    layers, interval = range(1, config.need("num_hidden_layers") + 1), config.get("no_rope_layer_interval", 4)
    turned = config.get("no_rope_layers", [int(layer % interval != 0) for layer in layers])
    if 0 in turned:
        yield Flag("no_rope_freq", [1 - of for of in turned], "no_rope_layers")


def _arcee(config: Config) -> Flags:
    yield from _shape(config)
    yield Flag("normalization", "RMSNorm", f"model_type {config.kind}")
    yield config.flag("norm_epsilon", "rms_norm_eps")
    yield from _squared_relu(config)
    yield from _attention(config)
    yield config.flag("ffn_hidden_size", "intermediate_size")
    config.must("attention_bias", False, default=False)
    config.must("mlp_bias", False, default=False)
    yield from _biases(config, False, False)


def _stablelm(config: Config) -> Flags:
    config.must("qk_layernorm", False, default=False)
    config.must("use_parallel_residual", False, default=False)
    yield from _shape(config)
    yield from _layer_norm(config, "layer_norm_eps")
    yield from _swiglu(config)
    yield from _attention(config)
    yield config.flag("ffn_hidden_size", "intermediate_size")
    yield from _biases(config, False, bool(config.get("use_qkv_bias", False)))


def _starcoder2(config: Config) -> Flags:
    yield from _shape(config)
    yield from _layer_norm(config, "norm_epsilon")
    yield from _gelu(config, "hidden_act")
    yield from _attention(config)
    yield config.flag("ffn_hidden_size", "intermediate_size")
    yield from _biases(config, bool(config.need("use_bias")), False)
    yield from _window(config, True)


def _gpt2(config: Config) -> Flags:
    for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"):
        config.must(name, False, default=False)
    config.must("scale_attn_weights", True, default=True)
    width = config.need("hidden_size")
    yield from _shape(config)
    yield from _layer_norm(config, "layer_norm_epsilon")
    yield from _gelu(config, "activation_function")
    yield Flag("position_embedding_type", "learned_absolute", "model_type gpt2")
    yield Flag("ffn_hidden_size", config.get("n_inner", 4 * width), "n_inner")
    yield Flag("kv_channels", sizes(config).head, f"n_embd {width}")
    yield from _biases(config, True, False)


def _glm4_moe(config: Config) -> Flags:
    yield from _dense(config)
    yield from _biases(config, False, bool(config.get("attention_bias", False)))
    normed = bool(config.get("use_qk_norm", False))
    yield Flag("qk_layernorm", normed, f"use_qk_norm {normed}")
    yield from _biased_router(config)


def _dots1(config: Config) -> Flags:
    yield from _dense(config)
    config.must("attention_bias", False, default=False)
    yield from _biases(config, False, False)
    yield Flag("qk_layernorm", True, "model_type dots1")
    yield from _window(config, "sliding_attention" in config.get("layer_types", []))
    yield from _biased_router(config)


# ---- weights

MODEL = {
    "embedding.word_embeddings.weight": vocabulary("model.embed_tokens.weight"),
    "decoder.final_layernorm.weight": whole("model.norm.weight"),
    "output_layer.weight": vocabulary("lm_head.weight"),
}


ATTENTION = {
    "input_layernorm.weight": whole("input_layernorm.weight"),
    **{
        f"self_attention.linear_qkv.{part}": qkv(
            f"self_attn.q_proj.{part}", f"self_attn.k_proj.{part}", f"self_attn.v_proj.{part}"
        )
        for part in ("weight", "bias")
    },
    "self_attention.linear_proj.weight": columns("self_attn.o_proj.weight"),
    "self_attention.linear_proj.bias": whole("self_attn.o_proj.bias"),
    "self_attention.q_layernorm.weight": whole("self_attn.q_norm.weight"),
    "self_attention.k_layernorm.weight": whole("self_attn.k_norm.weight"),
    "pre_mlp_layernorm.weight": whole("post_attention_layernorm.weight"),
}


def mlp(parameter: str, gate: str, up: str, down: str) -> dict[str, Rule]:
    """A gated MLP, dense or of experts; ``gate``, ``up`` and ``down`` are keys without their ending."""
    return {
        f"{parameter}.linear_fc1.weight": gated(f"{gate}.weight", f"{up}.weight"),
        f"{parameter}.linear_fc1.bias": gated(f"{gate}.bias", f"{up}.bias"),
        f"{parameter}.linear_fc2.weight": columns(f"{down}.weight"),
        f"{parameter}.linear_fc2.bias": whole(f"{down}.bias"),
    }


MLP = mlp("mlp", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
EXPERT = ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj")
QWEN_MOE = MLP | mlp("mlp.experts", *EXPERT) | {"mlp.router.weight": whole("mlp.gate.weight")}
MIXTRAL_KEYS = tuple(f"block_sparse_moe.experts.{{}}.{name}" for name in ("w1", "w3", "w2"))

LATENT_ATTENTION = {
    "input_layernorm.weight": whole("input_layernorm.weight"),
    "self_attention.linear_q_proj.weight": rows("self_attn.q_proj.weight"),
    "self_attention.linear_q_down_proj.weight": whole("self_attn.q_a_proj.weight"),
    "self_attention.q_layernorm.weight": whole("self_attn.q_a_layernorm.weight"),
    "self_attention.linear_q_up_proj.weight": rows("self_attn.q_b_proj.weight"),
    "self_attention.linear_kv_down_proj.weight": whole("self_attn.kv_a_proj_with_mqa.weight"),
    "self_attention.kv_layernorm.weight": whole("self_attn.kv_a_layernorm.weight"),
    "self_attention.linear_kv_up_proj.weight": rows("self_attn.kv_b_proj.weight"),
    "self_attention.linear_proj.weight": columns("self_attn.o_proj.weight"),
    "pre_mlp_layernorm.weight": whole("post_attention_layernorm.weight"),
}
DEEPSEEK_MOE = (
    QWEN_MOE
    | mlp("mlp.shared_experts", *(f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")))
    | {"mlp.router.expert_bias": whole("mlp.gate.e_score_correction_bias")}
)
MTP = {
    "enorm.weight": whole("enorm.weight"),
    "hnorm.weight": whole("hnorm.weight"),
    "eh_proj.weight": rows("eh_proj.weight"),
    "final_layernorm.weight": whole("shared_head.norm.weight"),
}
FUSED = ATTENTION | {"self_attention.linear_qkv.weight": qkv("self_attn.qkv_proj.weight")}
FUSED_MLP = {
    "mlp.linear_fc1.weight": gated("mlp.gate_up_proj.weight", "mlp.gate_up_proj.weight"),
    "mlp.linear_fc2.weight": columns("mlp.down_proj.weight"),
}
NORM_BIASES = {
    "input_layernorm.bias": whole("input_layernorm.bias"),
    "pre_mlp_layernorm.bias": whole("post_attention_layernorm.bias"),
}


def plain_mlp(up: str, down: str, transposed: bool = False) -> dict[str, Rule]:
    """An MLP without a gate."""
    return {
        "mlp.linear_fc1.weight": rows(f"{up}.weight", transposed),
        "mlp.linear_fc1.bias": rows(f"{up}.bias"),
        "mlp.linear_fc2.weight": columns(f"{down}.weight", transposed),
        "mlp.linear_fc2.bias": whole(f"{down}.bias"),
    }


LAYER_NORM_MODEL = MODEL | {"decoder.final_layernorm.bias": whole("model.norm.bias")}
GPT2 = Family(
    _gpt2,
    {
        "embedding.word_embeddings.weight": vocabulary("transformer.wte.weight"),
        "embedding.position_embeddings.weight": whole("transformer.wpe.weight"),
        "decoder.final_layernorm.weight": whole("transformer.ln_f.weight"),
        "decoder.final_layernorm.bias": whole("transformer.ln_f.bias"),
        "output_layer.weight": vocabulary("lm_head.weight"),
    },
    {f"input_layernorm.{part}": whole(f"ln_1.{part}") for part in ("weight", "bias")}
    | {f"pre_mlp_layernorm.{part}": whole(f"ln_2.{part}") for part in ("weight", "bias")}
    | {
        "self_attention.linear_qkv.weight": qkv("attn.c_attn.weight", transposed=True),
        "self_attention.linear_qkv.bias": qkv("attn.c_attn.bias"),
        "self_attention.linear_proj.weight": columns("attn.c_proj.weight", transposed=True),
        "self_attention.linear_proj.bias": whole("attn.c_proj.bias"),
    }
    | plain_mlp("mlp.c_fc", "mlp.c_proj", transposed=True),
    layer="transformer.h.{}.",
    unused=(r".*\.attn\.(masked_)?bias",),
)
LLAMA = Family(_llama, MODEL, ATTENTION | MLP)
DEEPSEEK_V3 = Family(_deepseek_v3, MODEL, LATENT_ATTENTION | DEEPSEEK_MOE, mtp=MTP)

FAMILIES: Mapping[str, Family] = {
    "llama": LLAMA,
    "mistral": Family(_mistral, MODEL, ATTENTION | MLP),
    "mixtral": Family(
        _mixtral,
        MODEL,
        ATTENTION
        | mlp("mlp.experts", *MIXTRAL_KEYS)
        | {"mlp.router.weight": whole("block_sparse_moe.gate.weight")},
    ),
    "qwen2": Family(_qwen2, MODEL, ATTENTION | MLP),
    "qwen2_moe": Family(
        _qwen2_moe,
        MODEL,
        ATTENTION
        | QWEN_MOE
        | mlp("mlp.shared_experts", *(f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")))
        | {"mlp.shared_experts.gate_weight": whole("mlp.shared_expert_gate.weight")},
    ),
    "qwen3": Family(_qwen3, MODEL, ATTENTION | MLP),
    "qwen3_moe": Family(_qwen3_moe, MODEL, ATTENTION | QWEN_MOE),
    "deepseek_v2": Family(_deepseek_v2, MODEL, LATENT_ATTENTION | DEEPSEEK_MOE),
    "deepseek_v3": DEEPSEEK_V3,
    "kimi_k2": DEEPSEEK_V3,
    "phi3": Family(_mistral, MODEL, FUSED | FUSED_MLP),
    "glm": Family(_glm, MODEL, ATTENTION | FUSED_MLP),
    "glm4_moe": Family(_glm4_moe, MODEL, ATTENTION | DEEPSEEK_MOE, mtp=MTP),
    "dots1": Family(_dots1, MODEL, ATTENTION | DEEPSEEK_MOE),
    "ernie4_5": Family(_ernie, MODEL, ATTENTION | MLP),
    "seed_oss": Family(_seed_oss, MODEL, ATTENTION | MLP),
    "smollm3": Family(_smollm3, MODEL, ATTENTION | MLP),
    "arcee": Family(_arcee, MODEL, ATTENTION | plain_mlp("mlp.up_proj", "mlp.down_proj")),
    "stablelm": Family(_stablelm, LAYER_NORM_MODEL, ATTENTION | NORM_BIASES | MLP),
    "starcoder2": Family(
        _starcoder2, LAYER_NORM_MODEL, ATTENTION | NORM_BIASES | plain_mlp("mlp.c_fc", "mlp.c_proj")
    ),
    "gpt2": GPT2,
}

REFUSED: Mapping[str, str] = {
    "baichuan": "13B has ALiBi, and its config.json looks like 7B's",
    "bloom": "it has ALiBi",
    "falcon": "attention and MLP are parallel, or it has ALiBi",
    "gemma2": "it caps attention scores",
    "gpt_neox": "attention and MLP are parallel",
    "granite": "it multiplies embeddings, residuals and logits",
    "minicpm": "it multiplies embeddings, residuals and logits",
    "minimax": "it has lightning attention",
    "mpt": "it has ALiBi",
    "olmo2": "its norms follow attention and MLP",
    "olmo3": "its norms follow attention and MLP",
}
"""Architectures that Megatron-Core cannot express, and why."""


def family(config: Config) -> Family:
    """The family of a model. Raises UnsupportedModelError for one that is not known, or refused."""
    if (quantised := config.get("quantization_config")) is not None:
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else quantised
        raise UnsupportedModelError(
            f"{config.path} describes quantised weights ({method}): save them as bfloat16 first"
        )
    if config.kind in REFUSED:
        raise UnsupportedModelError(
            f"{config.path} is of a {config.kind} model, which Megatron-Core cannot express: "
            f"{REFUSED[config.kind]}"
        )
    if config.kind not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedModelError(
            f"{config.path} is of a {config.kind} model, which is not known here; known are {known}"
        )
    return FAMILIES[config.kind]
