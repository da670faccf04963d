"""Continues a prompt with the model under training, through the same pipeline schedule that trains it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core import mpu, tensor_parallel
from megatron.core.pipeline_parallel import get_forward_backward_func

from .distributed import from_last_rank, is_last_rank
from .errors import RecipeError
from .tokenizer import Tokenizer


def last_logits(
    args: argparse.Namespace, model: Sequence[torch.nn.Module], tokens: torch.Tensor, position: int
) -> torch.Tensor | None:
    """Logits (float32 [vocabulary], host) after token `position` of `tokens` [1, s]; last stage only."""
    position_ids = torch.arange(tokens.shape[1], device="cuda").unsqueeze(0)

    def forward(_iterator: None, chunk: torch.nn.Module) -> tuple[torch.Tensor, Any]:
        return chunk(tokens, position_ids, None), lambda output, non_loss_data: output

    data = get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=[None] * len(model),
        model=list(model),
        num_microbatches=1,
        seq_length=tokens.shape[1],
        micro_batch_size=1,
        forward_only=True,
        collect_non_loss_data=True,
    )
    if not mpu.is_pipeline_last_stage(ignore_virtual=True):
        return None
    logits = tensor_parallel.gather_from_tensor_model_parallel_region(data[0])
    return logits[0, position].float().cpu()


def generate(
    args: argparse.Namespace, model: Sequence[torch.nn.Module], tokenizer: Tokenizer, prompt: str
) -> str:
    """`prompt` and up to --prompt-tokens further tokens; a collective call.

    Each token is drawn from the --prompt-top-k most likely ones (1: the most likely), seeded by --seed. The
    whole sequence, padded to --seq-length, is computed anew for each token: simple, and the same under
    tensor, sequence and pipeline parallelism. Context parallelism would need the prompt cut: refused.

    Raises:
        RecipeError: the prompt is empty or too long, or context parallelism is on.
    """
    if args.context_parallel_size > 1:
        raise RecipeError("--prompt does not go with --context-parallel-size above 1")
    ids = tokenizer.tokenize(prompt)
    if not 0 < len(ids) < args.sequence_length:
        raise RecipeError(f"--prompt has {len(ids)} tokens; it must have 1 to {args.sequence_length - 1}")
    generator = torch.Generator().manual_seed(args.random_seed)
    limit = min(args.sequence_length, len(ids) + args.prompt_tokens)
    training = [chunk.training for chunk in model]
    for chunk in model:
        chunk.eval()
    with torch.no_grad():
        while len(ids) < limit:
            padded = torch.full((1, args.sequence_length), tokenizer.eod, dtype=torch.int64)
            padded[0, : len(ids)] = torch.tensor(ids)
            logits = last_logits(args, model, padded.cuda(), len(ids) - 1)
            token = torch.zeros(1, dtype=torch.int64)
            if is_last_rank():
                # Beyond the tokenizer's size the vocabulary is padding, which must not be drawn.
                best = torch.topk(logits[: tokenizer.vocab_size], args.prompt_top_k)
                drawn = torch.multinomial(torch.softmax(best.values, dim=0), 1, generator=generator)
                token = best.indices[drawn]
            ids.append(int(from_last_rank(token.cuda()).item()))
            if ids[-1] == tokenizer.eod:
                break
    for chunk, was_training in zip(model, training, strict=True):
        chunk.train(was_training)
    return tokenizer.detokenize(ids)
