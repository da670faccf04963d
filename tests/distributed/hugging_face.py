"""A Hugging Face folder made by hand, and a rank that loads it into a GPTModel and writes it out.

Nothing of transformers or safetensors: the format is written here a second time, from its description.
"""

from __future__ import annotations

import json
import struct
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 131,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": COMMON | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3_moe": COMMON
    | {
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
    },
    "deepseek_v3": COMMON
    | {
        "model_type": "deepseek_v3",
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 12,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "num_nextn_predict_layers": 1,
    },
}
"""DeepSeek's says nothing of its scoring function, as some config.json do not."""


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Key -> shape, as transformers and DeepSeek name and shape them."""
    h, vocabulary, kind = config["hidden_size"], config["vocab_size"], config["model_type"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim", h // heads)
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, h),
        "model.norm.weight": (h,),
    }
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (vocabulary, h)

    def mlp(prefix: str, width: int) -> None:
        found[f"{prefix}.gate_proj.weight"] = found[f"{prefix}.up_proj.weight"] = (width, h)
        found[f"{prefix}.down_proj.weight"] = (h, width)

    extra = config.get("num_nextn_predict_layers", 0)
    for layer in range(config["num_hidden_layers"] + extra):
        p = f"model.layers.{layer}."
        found[f"{p}input_layernorm.weight"] = found[f"{p}post_attention_layernorm.weight"] = (h,)
        if kind == "deepseek_v3":
            q, kv, rope = config["q_lora_rank"], config["kv_lora_rank"], config["qk_rope_head_dim"]
            nope, value = config["qk_nope_head_dim"], config["v_head_dim"]
            found[f"{p}self_attn.q_a_proj.weight"] = (q, h)
            found[f"{p}self_attn.q_a_layernorm.weight"] = (q,)
            found[f"{p}self_attn.q_b_proj.weight"] = (heads * (nope + rope), q)
            found[f"{p}self_attn.kv_a_proj_with_mqa.weight"] = (kv + rope, h)
            found[f"{p}self_attn.kv_a_layernorm.weight"] = (kv,)
            found[f"{p}self_attn.kv_b_proj.weight"] = (heads * (nope + value), kv)
            found[f"{p}self_attn.o_proj.weight"] = (h, heads * value)
        else:
            for name, rows in (("q", heads * head), ("k", groups * head), ("v", groups * head)):
                found[f"{p}self_attn.{name}_proj.weight"] = (rows, h)
                if kind == "qwen2":
                    found[f"{p}self_attn.{name}_proj.bias"] = (rows,)
            found[f"{p}self_attn.o_proj.weight"] = (h, heads * head)
            if kind == "qwen3_moe":
                found[f"{p}self_attn.q_norm.weight"] = found[f"{p}self_attn.k_norm.weight"] = (head,)
        experts = config.get("num_experts", config.get("n_routed_experts", 0))
        if experts and layer >= config.get("first_k_dense_replace", 0):
            found[f"{p}mlp.gate.weight"] = (experts, h)
            for expert in range(experts):
                mlp(f"{p}mlp.experts.{expert}", config["moe_intermediate_size"])
            if kind == "deepseek_v3":
                found[f"{p}mlp.gate.e_score_correction_bias"] = (experts,)
                mlp(f"{p}mlp.shared_experts", config["moe_intermediate_size"])
        else:
            mlp(f"{p}mlp", config["intermediate_size"])
        if layer >= config["num_hidden_layers"]:
            for name in ("enorm", "hnorm", "shared_head.norm"):
                found[f"{p}{name}.weight"] = (h,)
            found[f"{p}eh_proj.weight"] = (h, 2 * h)
            found[f"{p}embed_tokens.weight"] = found[f"{p}shared_head.head.weight"] = (vocabulary, h)
    return found


def tensors(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random weights; the matrices that layers of multi-token prediction share with the model are equal."""
    torch.manual_seed(1)
    made = {key: torch.randn(shape) for key, shape in shapes(config).items()}
    for key in made:
        if key.endswith(".embed_tokens.weight"):
            made[key] = made["model.embed_tokens.weight"]
        elif key.endswith("shared_head.head.weight"):
            made[key] = made["lm_head.weight"]
    return made


def write(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor], files: int = 2) -> Path:
    """A folder with config.json, generation_config.json, an index, and the weights in ``files`` shards."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text('{"do_sample": true}')
    listed = {}
    for number in range(files):
        keys = list(weights)[number::files]
        name = f"model-{number + 1:05}-of-{files:05}.safetensors"
        header, data = {}, b""
        for key in keys:
            raw = weights[key].contiguous().numpy().tobytes()
            offsets = [len(data), len(data) + len(raw)]
            header[key] = {"dtype": "F32", "shape": list(weights[key].shape), "data_offsets": offsets}
            data += raw
            listed[key] = name
        text = json.dumps(header).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    return folder


def read(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder."""
    found = {}
    for file in folder.glob("*.safetensors"):
        raw = file.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        for key, entry in json.loads(raw[8 : 8 + length]).items():
            if key != "__metadata__":
                start, stop = entry["data_offsets"]
                data = torch.frombuffer(
                    bytearray(raw[8 + length + start : 8 + length + stop]), dtype=torch.float32
                )
                found[key] = data.view(entry["shape"])
    return found


def model(folder: Path, layout: dict[str, int], mtp: int = 0, vocabulary: int = 256) -> list[Any]:
    """The chunks of a GPTModel on this rank, with the flags that config.json stands for."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec, get_gpt_mtp_block_spec
    from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
    from mindspeed_ms.hf.config import Config
    from mindspeed_ms.hf.families import family

    config = Config.read(folder)
    flags = {flag.dest: flag.value for flag in family(config).flags(config)}
    kind = MLATransformerConfig if flags.get("multi_latent_attention") else TransformerConfig
    renamed = {
        "norm_epsilon": "layernorm_epsilon",
        "num_experts": "num_moe_experts",
        "swiglu": "gated_linear_unit",
    }
    known = {renamed.get(name, name): value for name, value in flags.items()}
    known = {name: value for name, value in known.items() if name in kind.__dataclass_fields__}
    parallel = {
        f"{name}_model_parallel_size": layout.get(name, 1) for name in ("tensor", "pipeline", "expert")
    }
    sharded = {"sequence_parallel": layout.get("tensor", 1) > 1, "pipeline_dtype": torch.float32}
    stages = layout.get("virtual")
    made = kind(
        **known,
        **parallel,
        **sharded,
        virtual_pipeline_model_parallel_size=stages,
        expert_tensor_parallel_size=layout.get("expert_tensor", 1),
        activation_func=torch.nn.functional.silu,
        mtp_num_layers=mtp or None,
    )
    chunks = []
    from megatron.core import parallel_state as state

    for stage in range(stages or 1):
        virtual = {"vp_stage": stage} if stages else {}
        spec = get_gpt_decoder_block_spec(made, use_transformer_engine=True, **virtual)
        after = state.is_pipeline_last_stage(**({"ignore_virtual": False, **virtual} if stages else {}))
        chunk = GPTModel(
            made,
            spec,
            vocab_size=vocabulary,
            max_sequence_length=64,
            pre_process=state.is_pipeline_first_stage(
                **({"ignore_virtual": False, **virtual} if stages else {})
            ),
            post_process=after,
            share_embeddings_and_output_weights=config.get("tie_word_embeddings", False),
            position_embedding_type="rope",
            mtp_block_spec=get_gpt_mtp_block_spec(made, spec, True, **virtual) if mtp and after else None,
            **virtual,
        )
        chunks.append(chunk.cuda())
    return chunks


def start(rank: int, world: int, store: Any, layout: dict[str, int]) -> None:
    """torch.distributed and Megatron's groups."""
    import mindspeed_ms.patch  # noqa: F401
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    dist.init_process_group("nccl", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.get("tensor", 1),
        pipeline_model_parallel_size=layout.get("pipeline", 1),
        virtual_pipeline_model_parallel_size=layout.get("virtual"),
        expert_model_parallel_size=layout.get("expert", 1),
        expert_tensor_parallel_size=layout.get("expert_tensor", 1),
    )
    model_parallel_cuda_manual_seed(1)


def round_trip(
    rank: int, world: int, store: Any, folder: Path, out: Path, layout: dict[str, int], mtp: int
) -> int:
    """Load ``folder`` in a layout and write it to ``out``; returns the bytes that this rank read."""
    start(rank, world, store, layout)
    from mindspeed_ms import hf

    chunks = model(folder, layout, mtp)
    for chunk in chunks:
        for parameter in chunk.parameters():
            parameter.data.fill_(float("nan"))  # what is not loaded is not written either
    loaded = hf.load(chunks, folder)
    hf.save(chunks, folder, out)
    dist.destroy_process_group()
    return loaded.read


def errors(rank: int, world: int, store: Any, folders: list[Path], out: Path) -> list[tuple[str, str]]:
    """What loading each folder raises on this rank, as (type, message): the model is that of the first."""
    start(rank, world, store, {"tensor": world})
    from mindspeed_ms import hf

    chunks = model(folders[0], {"tensor": world})
    hf.load(chunks, folders[0])
    found = []
    for folder in folders[1:]:
        try:
            hf.load(chunks, folder)
            found.append(("", ""))
        except Exception as error:
            found.append((type(error).__name__, str(error)))
    dist.destroy_process_group()
    return found


def save_for_ever(rank: int, world: int, store: Any, folder: Path, out: Path) -> None:
    """Load a folder, and write it again and again."""
    start(rank, world, store, {})
    from mindspeed_ms import hf

    chunks = model(folder, {})
    hf.load(chunks, folder)
    number = 0
    while True:
        hf.save(chunks, folder, out / str(number))
        number += 1
