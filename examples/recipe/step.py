"""One training iteration and one evaluation, by Megatron-Core's schedules."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import mpu
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.num_microbatches_calculator import get_current_global_batch_size, get_num_microbatches
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer import TransformerConfig
from megatron.core.utils import get_batch_on_this_cp_rank

from .data import Batch, Progress, on_device
from .errors import RecipeError

LOSS = "lm loss"
DIVERGED = (
    "training stops before it changes the weights, saved checkpoints are intact; "
    "lower --lr or raise --lr-warmup-iters"
)
Iterators = Sequence[Iterator[Batch] | None]


@dataclass
class StepResult:
    """What one iteration gave; the loss, a mean per token, is known on the last pipeline stage only."""

    loss: float | None
    grad_norm: float | None
    zeros_in_grad: int | None
    skipped: bool


def token_loss(
    args: argparse.Namespace, progress: Progress, loss_mask: torch.Tensor, losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Sum of the losses [b, s] of unmasked tokens, their number (int32 scalar), and both for the log.

    Raises:
        RecipeError: the sum is NaN or infinite, unless --no-check-for-nan-in-loss-and-grad or a dynamic loss
            scale allow it. Nothing has been changed by this iteration yet.
    """
    mask = loss_mask.view(-1).float()
    loss = torch.sum(losses.view(-1).float() * mask)
    tokens = mask.sum().detach().to(torch.int)
    if args.check_for_nan_in_grad and not torch.isfinite(loss):
        raise RecipeError(f"the loss of iteration {progress.iteration + 1} is {loss.item()}: {DIVERGED}")
    return loss, tokens, {LOSS: torch.stack([loss.detach(), tokens.float()])}


def forward_step(
    args: argparse.Namespace,
    progress: Progress,
    iterator: Iterator[Batch] | None,
    model: torch.nn.Module,
) -> tuple[torch.Tensor, Any]:
    """Megatron's `forward_step_func`: output of one micro batch and the function that makes a loss of it."""
    batch: dict[str, torch.Tensor | None] = dict.fromkeys(
        ("tokens", "position_ids", "attention_mask", "labels", "loss_mask")
    )
    if mpu.is_pipeline_first_stage(ignore_virtual=True) or mpu.is_pipeline_last_stage(ignore_virtual=True):
        try:
            batch = get_batch_on_this_cp_rank(on_device(next(iterator)))
        except StopIteration:
            raise RecipeError(
                "the data ended before the run: it holds fewer samples than asked for"
            ) from None
    output = model(batch["tokens"], batch["position_ids"], batch["attention_mask"], labels=batch["labels"])
    return output, partial(token_loss, args, progress, batch["loss_mask"])


def connect(
    args: argparse.Namespace,
    config: TransformerConfig,
    model: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
) -> None:
    """Gives Megatron's schedules their callbacks: loss scale, gradient and parameter synchronisation."""

    def one_or_all(functions: list[Any]) -> Any:
        return functions[0] if len(functions) == 1 else functions

    config.grad_scale_func = optimizer.scale_loss
    config.finalize_model_grads_func = finalize_model_grads
    if args.overlap_grad_reduce:
        config.no_sync_func = one_or_all([chunk.no_sync for chunk in model])
        if args.align_grad_reduce:
            config.grad_sync_func = one_or_all([chunk.start_grad_sync for chunk in model])
    if args.overlap_param_gather and args.align_param_gather:
        config.param_sync_func = one_or_all([chunk.start_param_sync for chunk in model])


def run_schedule(
    args: argparse.Namespace,
    progress: Progress,
    iterators: Iterators,
    model: Sequence[DistributedDataParallel],
    forward_only: bool,
) -> torch.Tensor | None:
    """Runs all micro batches of one iteration; (sum of losses, tokens) over all ranks on the last stage."""
    reports = get_forward_backward_func()(
        forward_step_func=partial(forward_step, args, progress),
        data_iterator=list(iterators) if len(iterators) > 1 else iterators[0],
        model=list(model),
        num_microbatches=get_num_microbatches(),
        seq_length=args.sequence_length,
        micro_batch_size=args.micro_batch_size,
        forward_only=forward_only,
    )
    if not mpu.is_pipeline_last_stage(ignore_virtual=True):
        return None
    total = torch.stack([report[LOSS] for report in reports]).sum(dim=0)
    dist.all_reduce(total, group=mpu.get_data_parallel_group(with_context_parallel=True))
    return total


def model_parallel_max(value: float | None) -> float | None:
    """Largest value over the model parallel group; a rank without parameters passes None."""
    tensor = torch.tensor([-1.0 if value is None else float(value)], device="cuda")
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=mpu.get_model_parallel_group())
    return None if tensor.item() < 0 else tensor.item()


def train_step(
    args: argparse.Namespace,
    progress: Progress,
    iterators: Iterators,
    model: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    scheduler: OptimizerParamScheduler,
) -> StepResult:
    """Forward, backward, gradient reduction, clipping, optimizer and scheduler; moves `progress` on."""
    for chunk in model:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    try:
        total = run_schedule(args, progress, iterators, model, forward_only=False)
    except RuntimeError as error:
        # How Megatron-Core's check of the gradients, which precedes their reduction, reports what it found.
        if "Unexpected result" not in str(error):
            raise
        raise RecipeError(
            f"a gradient of iteration {progress.iteration + 1} is NaN or infinite: {DIVERGED}"
        ) from error
    updated, grad_norm, zeros = optimizer.step()
    updated = model_parallel_max(0.0 if updated else 1.0) == 0.0
    grad_norm = model_parallel_max(grad_norm)
    samples = get_current_global_batch_size()
    if updated:
        scheduler.step(increment=samples)
    progress.iteration += 1
    progress.consumed_train_samples += samples
    loss = (total[0] / total[1]).item() if total is not None else None
    return StepResult(loss, grad_norm, zeros, skipped=not updated)


def evaluate(
    args: argparse.Namespace,
    progress: Progress,
    iterators: Iterators,
    model: Sequence[DistributedDataParallel],
    samples_counted: bool,
) -> float | None:
    """Mean loss per token over --eval-iters iterations without gradients; None except on the last stage.

    `samples_counted`: whether the samples count as consumed validation samples.
    """
    for chunk in model:
        chunk.eval()
    sums = []
    with torch.no_grad():
        for _ in range(args.eval_iters):
            sums.append(run_schedule(args, progress, iterators, model, forward_only=True))
            if samples_counted:
                progress.consumed_valid_samples += get_current_global_batch_size()
    for chunk in model:
        chunk.train()
    if sums[-1] is None:
        return None
    total = torch.stack(sums).sum(dim=0)
    return (total[0] / total[1]).item()
