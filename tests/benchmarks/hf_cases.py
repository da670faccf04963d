"""Small models of each architecture, built with transformers' own classes, and the layouts to try."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SEQUENCE, BATCH, VOCABULARY = 16, 2, 131
"""The vocabulary is divisible by nothing, so that Megatron pads it."""

_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "use_cache": False,
}
_EXPERTS: dict[str, Any] = {"moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "routed_scaling_factor": 1.7,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 16,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 2": ("llama", {"num_key_value_heads": 4}),
    "Llama 3.2": ("llama", {"rope_parameters": {**_LLAMA3, "factor": 32.0}, "head_dim": 64}),
    "Llama, longer": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}},
    ),
    "Llama 3.1": ("llama", {"rope_parameters": _LLAMA3, "vocab_size": 128}),
    "Llama 3.2, tied": ("llama", {"tie_word_embeddings": True}),
    "Llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "Mistral": ("mistral", {"head_dim": 32, "sliding_window": None}),
    "Qwen2.5": ("qwen2", {}),
    "Qwen2.5, tied": ("qwen2", {"tie_word_embeddings": True}),
    "Qwen3": ("qwen3", {"head_dim": 32}),
    "Qwen3-MoE": ("qwen3_moe", dict(head_dim=32, norm_topk_prob=True, **_EXPERTS)),
    "Qwen1.5-MoE": (
        "qwen2_moe",
        dict(shared_expert_intermediate_size=40, norm_topk_prob=False, mlp_only_layers=[1], **_EXPERTS),
    ),
    "Mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "DeepSeek-V2-Lite": ("deepseek_v2", dict(q_lora_rank=None, **_LATENT)),
    "DeepSeek-V3": (
        "deepseek_v3",
        dict(q_lora_rank=24, n_group=4, topk_group=1, rope_parameters=_YARN, **_LATENT),
    ),
    "Kimi-K2": ("deepseek_v3", dict(q_lora_rank=24, n_group=1, topk_group=1, **_LATENT)),
    "Phi-3": ("phi3", {"sliding_window": None}),
    "GLM-4-9B": ("glm", {"head_dim": 16, "attention_bias": True}),
    "GLM-4.5": (
        "glm4_moe",
        {
            **_LATENT,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "attention_bias": True,
            "use_qk_norm": True,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "dots.llm1": (
        "dots1",
        {**_LATENT, "num_key_value_heads": 2, "n_group": 1, "topk_group": 1, "norm_topk_prob": True},
    ),
    "ERNIE 4.5": ("ernie4_5", {"tie_word_embeddings": True, "head_dim": 16}),
    "Seed-OSS": ("seed_oss", {"head_dim": 32, "attention_dropout": 0.0, "residual_dropout": 0.0}),
    "SmolLM3": ("smollm3", {"no_rope_layers": [1, 0, 1, 1]}),
    "Arcee": ("arcee", {}),
    "StableLM 2": ("stablelm", {"use_qkv_bias": True}),
    "StarCoder2": ("starcoder2", {"attention_dropout": 0.0}),
    "GPT-2": (
        "gpt2",
        {
            "n_embd": 64,
            "n_layer": 4,
            "n_head": 4,
            "n_positions": 64,
            "resid_pdrop": 0.0,
            "num_key_value_heads": None,
        }
        | {"embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
}
"""Name -> model_type of transformers, and what its config says beside the common sizes."""

EXPERTS = frozenset(name for name, (_, own) in MODELS.items() if "num_experts_per_tok" in own)

LAYOUTS: dict[str, tuple[int, str]] = {
    "TP1": (1, ""),
    "TP2": (2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    "PP2": (2, "--pipeline-model-parallel-size 2"),
    "EP2": (2, "--expert-model-parallel-size 2"),
    "VPP": (2, "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1"),
}
"""Name -> ranks and flags."""


def build(name: str, folder: Path) -> Any:
    """The model ``name`` with random float32 weights, saved to ``folder``; returns transformers' module."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, own = MODELS[name]
    config = AutoConfig.for_model(kind, **(_COMMON | own))
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for key, tensor in (*model.named_parameters(), *model.named_buffers()):
            if key.endswith(("norm.weight", "bias")):  # made of ones and zeros, which hide what is dropped
                tensor.add_(torch.randn_like(tensor) * 0.1)
    model.save_pretrained(folder)
    return model


def reference(model: Any, folder: Path) -> None:
    """Write tokens, logits and the loss to ``folder``/reference.pt, and gradients as a model beside it."""
    import torch

    draw = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, VOCABULARY - 3, (BATCH, SEQUENCE + 1), generator=draw)
    logits = model.eval()(input_ids=tokens[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
    loss.backward()
    torch.save({"tokens": tokens, "logits": logits.detach(), "loss": loss.detach()}, folder / "reference.pt")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    model.save_pretrained(folder / "gradients")
