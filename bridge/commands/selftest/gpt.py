"""Twenty steps of a small Megatron-Core GPT, on any number of ranks: the same losses, however it is split.

Written for CUDA, as Megatron's scripts are. Run as a script under plain torch it makes the curves that
``mindspeed-ms selftest`` compares with:

    python -m tests.reference.plain_torch bridge/commands/selftest/gpt.py bridge/commands/selftest/curves.json
"""

from __future__ import annotations

import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspeed_ms.patch  # noqa: F401 - the device, before Megatron
import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import Float16Module

VOCABULARY, LENGTH, BATCH, MICRO_BATCHES, STEPS = 128, 64, 2, 2, 20
LAYERS, WIDTH, HEADS, EXPERTS = 2, 128, 4, 4
TOKENS = LENGTH * BATCH * MICRO_BATCHES


@dataclass(frozen=True)
class Layout:
    """How the model is split: sizes of the parallel groups."""

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1


def _config(layout: Layout, experts: bool, dtype: torch.dtype) -> TransformerConfig:
    routed: dict[str, Any] = {
        "num_moe_experts": EXPERTS,
        "moe_router_topk": 2,
        "moe_router_load_balancing_type": "none",
        "moe_token_dispatcher_type": "alltoall",
        "expert_model_parallel_size": layout.expert,
    }
    return TransformerConfig(
        num_layers=LAYERS,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        ffn_hidden_size=2 * WIDTH,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        add_bias_linear=not experts,
        bf16=dtype is torch.bfloat16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=layout.tensor,
        sequence_parallel=layout.tensor > 1,
        pipeline_model_parallel_size=layout.pipeline,
        finalize_model_grads_func=finalize_model_grads,
        **(routed if experts else {}),
    )


def _whole_name(name: str, first_layer: int) -> str:
    """The name of a parameter in the model that is not split."""
    local = EXPERTS // parallel_state.get_expert_model_parallel_world_size()
    first_expert = local * parallel_state.get_expert_model_parallel_rank()
    name = re.sub(r"layers\.(\d+)", lambda found: f"layers.{int(found[1]) + first_layer}", name)
    return re.sub(
        r"local_experts\.(\d+)", lambda found: f"local_experts.{int(found[1]) + first_expert}", name
    )


@torch.no_grad()
def _fill(model: GPTModel) -> None:
    """Weights that follow from their names alone, and lose nothing in bfloat16: equal in every layout."""
    first_layer = model.decoder.layers[0].layer_number - 1
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    for name, parameter in model.named_parameters():
        shape, dim = list(parameter.shape), getattr(parameter, "partition_dim", -1)
        if dim >= 0:
            shape[dim] *= ranks
        whole = _whole_name(name, first_layer)
        if whole == "output_layer.weight":  # the last stage's copy of the embedding
            whole = "embedding.word_embeddings.weight"
        generator = torch.Generator().manual_seed(zlib.crc32(whole.encode()))
        values = 0.05 * torch.randn(shape, generator=generator)
        if "layernorm.weight" in name:
            values += 1
        if dim >= 0:
            values = values.chunk(ranks, dim)[parallel_state.get_tensor_model_parallel_rank()]
        parameter.copy_(values.bfloat16())


def _batches(step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """This rank's micro batches of a step: (tokens, labels), each of shape (batch, LENGTH)."""
    generator = torch.Generator().manual_seed(step % 4)
    text = torch.randint(0, VOCABULARY, (MICRO_BATCHES, BATCH, LENGTH + 1), generator=generator)
    rank, world = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    for part in text:
        mine = part.chunk(world)[rank].cuda()
        yield mine[:, :-1].contiguous(), mine[:, 1:].contiguous()


def start(layout: Layout) -> None:
    """Makes the process groups; the ranks and where they meet stand in the environment, as torchrun's."""
    dist.init_process_group("nccl")
    parallel_state.initialize_model_parallel(
        layout.tensor, layout.pipeline, expert_model_parallel_size=layout.expert
    )
    tensor_parallel.model_parallel_cuda_manual_seed(7)


def train(
    layout: Layout, experts: bool, dtype: torch.dtype, after: Callable[[int], None] = lambda step: None
) -> list[float]:
    """The loss of each step, equal on all ranks. `after` is called at the end of each step."""
    config = _config(layout, experts, dtype)
    model = GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(num_experts=EXPERTS if experts else None),
        vocab_size=VOCABULARY,
        max_sequence_length=LENGTH,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=True,
    ).cuda()
    _fill(model)
    if config.bf16:
        model = Float16Module(config, model)
    model = DistributedDataParallel(config, DistributedDataParallelConfig(grad_reduce_in_fp32=True), model)
    # A large epsilon: with Adam's own, a gradient that is nothing but rounding moves its weight by a whole
    # step, and a token may go to another expert for it.
    options = {"optimizer": "adam", "adam_eps": 1e-5, "lr": 2e-3, "min_lr": 0.0, "weight_decay": 0.01}
    kind = {"bf16": config.bf16, "params_dtype": dtype, "clip_grad": 1.0}
    optimizer = get_megatron_optimizer(OptimizerConfig(**options, **kind), [model])
    positions = torch.arange(LENGTH, device="cuda").expand(BATCH, -1)
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool, device="cuda").triu(1)

    def forward(batches: Iterator[tuple[torch.Tensor, torch.Tensor]], model: Any) -> tuple[Any, Callable]:
        tokens, labels = next(batches)
        losses = model(tokens, positions[: len(tokens)], mask, labels=labels)
        return losses, lambda losses: (losses.float().mean(), {"loss": losses.detach().float().mean()})

    schedule, curve = get_forward_backward_func(), []
    for step in range(STEPS):
        model.zero_grad_buffer()
        optimizer.zero_grad()
        found = schedule(
            forward_step_func=forward,
            data_iterator=_batches(step),
            model=[model],
            num_microbatches=MICRO_BATCHES,
            seq_length=LENGTH,
            micro_batch_size=BATCH // parallel_state.get_data_parallel_world_size(),
            forward_only=False,
        )
        optimizer.step()
        total = (
            torch.stack([each["loss"] for each in found]).mean() if found else torch.zeros((), device="cuda")
        )
        if dist.get_world_size() > 1:  # data-parallel ranks have parts of it, pipeline stages but one nothing
            dist.all_reduce(total)
            total = total / (dist.get_world_size() // layout.pipeline)
        curve.append(total.item())
        after(step)
    return curve


def main(file: Path) -> None:
    """Writes the curves of one rank in float32."""
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29717")
    start(Layout())
    curves = {name: train(Layout(), name == "experts", torch.float32) for name in ("dense", "experts")}
    file.write_text(json.dumps(curves, indent=1) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
