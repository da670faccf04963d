"""Megatron's rules for random numbers under tensor and sequence parallelism, observed on dropout masks.

Run by test_dropout_rules.py and by tests/benchmarks/parallel_parity.py on 4 ranks: TP 2 x DP 2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

SEED, PROBABILITY, SHAPE = 1234, 0.5, (16, 2, 32)


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    """Where dropout let something through: bool, on the CPU."""
    return (tensor.detach() != 0).cpu()


def _embedding_mask(sequence_parallel: bool) -> torch.Tensor:
    """Mask of Megatron's own embedding dropout: this rank's rows of the sequence, or all of them."""
    from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
    from megatron.core.transformer import TransformerConfig

    config = TransformerConfig(
        num_layers=1,
        hidden_size=SHAPE[2],
        num_attention_heads=2,
        hidden_dropout=PROBABILITY,
        tensor_model_parallel_size=2,
        sequence_parallel=sequence_parallel,
        use_cpu_initialization=True,
    )
    embedding = LanguageModelEmbedding(config, 64, SHAPE[0], "none").cuda()
    tokens = torch.zeros(SHAPE[1], SHAPE[0], dtype=torch.int64, device="cuda")
    return _kept(embedding(tokens, None))


def _recomputed_alike() -> bool:
    """Whether Megatron's recomputation draws in backward what forward drew, in both streams."""
    from megatron.core import tensor_parallel

    def layer(x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.dropout(x, PROBABILITY)
        with tensor_parallel.get_cuda_rng_tracker().fork():
            return torch.nn.functional.dropout(x, PROBABILITY)

    x = torch.ones(SHAPE, device="cuda", requires_grad=True)
    out = tensor_parallel.checkpoint(layer, False, x)
    torch.rand(3, device="cuda")
    out.sum().backward()
    return torch.equal(_kept(out), _kept(x.grad))


def observe(rank: int, world: int, store: dist.Store) -> dict[str, Any]:
    """Masks of this rank by name, and whether recomputation repeats its own."""
    import mindspeed_ms.patch  # noqa: F401 - before Megatron
    from megatron.core import parallel_state, tensor_parallel

    dist.init_process_group("nccl", store=store, rank=rank, world_size=world)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2)
    torch.manual_seed(SEED)
    tensor_parallel.model_parallel_cuda_manual_seed(SEED)
    ones = torch.ones(SHAPE, device="cuda")
    masks = {"default": _kept(torch.nn.functional.dropout(ones, PROBABILITY))}
    with tensor_parallel.get_cuda_rng_tracker().fork():
        masks["tensor parallel"] = _kept(torch.nn.functional.dropout(ones, PROBABILITY))
    masks["embedding"] = _embedding_mask(sequence_parallel=False)
    masks["embedding, sequence parallel"] = _embedding_mask(sequence_parallel=True)
    recomputed = _recomputed_alike()
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
    return {"masks": {name: mask.numpy() for name, mask in masks.items()}, "recomputed": recomputed}


def rules(observed: list[dict[str, Any]]) -> dict[str, bool]:
    """Rule -> whether it holds, of what ranks 0-3 observed; tensor ranks are 0 and 1, data ranks 0 and 2."""

    def alike(name: str, one: int, other: int) -> bool:
        masks = [observed[rank]["masks"][name] for rank in (one, other)]
        return masks[0].shape == masks[1].shape and bool((masks[0] == masks[1]).all())

    return {
        "tensor ranks drop alike what both hold": alike("default", 0, 1) and alike("embedding", 0, 1),
        "tensor ranks drop independently what they share": not alike("tensor parallel", 0, 1),
        "sequence parallel ranks drop independently": not alike("embedding, sequence parallel", 0, 1),
        "data parallel replicas draw alike": all(alike(name, 0, 2) for name in observed[0]["masks"]),
        "recomputation draws the same masks again": all(seen["recomputed"] for seen in observed),
        "half of the values are dropped": all(
            0.4 < mask.mean() < 0.6 for seen in observed for mask in seen["masks"].values()
        ),
    }
