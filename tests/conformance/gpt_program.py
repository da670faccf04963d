"""Trains a tiny Megatron-Core GPTModel and writes the losses and gradient norms to a file, as JSON.

Written for CUDA, like any Megatron script: it runs on npu, and on CPU under tests.reference.plain_torch.
"""

import mindspeed_ms.patch  # noqa: F401, I001
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import TransformerConfig

VOCABULARY, LENGTH, BATCH, STEPS = 96, 16, 2, 4


def build() -> GPTModel:
    config = TransformerConfig(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        num_query_groups=2,
        ffn_hidden_size=64,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        add_bias_linear=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        use_cpu_initialization=True,  # the same weights on every device
    )
    return GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=VOCABULARY,
        max_sequence_length=LENGTH,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=True,
    )


def main(file: Path) -> None:
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    torch.manual_seed(7)
    tensor_parallel.model_parallel_cuda_manual_seed(7)
    model = build().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1)).cuda()
    positions = torch.arange(LENGTH, device="cuda").expand(BATCH, -1)
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool, device="cuda").triu(1)
    curve = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        # Not Megatron's vocab-parallel loss: its all-reduce reads memory by address; opaque memory has none.
        logits = model(tokens[:, :-1], positions, mask)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        curve.append((loss.item(), norm.item()))
    file.write_text(json.dumps(curve))
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
