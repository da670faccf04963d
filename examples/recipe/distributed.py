"""Start and end of the process group, Megatron's groups and seeds, and what ranks agree on."""

from __future__ import annotations

import argparse
import os
import random
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import mpu, tensor_parallel
from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator
from megatron.core.rerun_state_machine import RerunMode, initialize_rerun_state_machine

from .model import known


def initialize(args: argparse.Namespace) -> None:
    """Joins torchrun's processes (or makes a group of one), builds Megatron's groups, seeds everything."""
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    timeout = timedelta(minutes=args.distributed_timeout_minutes)
    if "MASTER_ADDR" in os.environ:
        dist.init_process_group(args.distributed_backend, timeout=timeout)
    else:
        store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
        dist.init_process_group(args.distributed_backend, timeout=timeout, store=store, rank=0, world_size=1)
    mpu.initialize_model_parallel(
        args.tensor_model_parallel_size,
        args.pipeline_model_parallel_size,
        args.virtual_pipeline_model_parallel_size,
        **known(
            mpu.initialize_model_parallel,
            context_parallel_size=args.context_parallel_size,
            hierarchical_context_parallel_sizes=args.hierarchical_context_parallel_sizes,
            expert_model_parallel_size=args.expert_model_parallel_size,
            expert_tensor_parallel_size=args.expert_tensor_parallel_size,
            num_distributed_optimizer_instances=args.num_distributed_optimizer_instances,
            distributed_timeout_minutes=args.distributed_timeout_minutes,
            order="tp-cp-ep-pp-dp" if args.use_tp_pp_dp_mapping else "tp-cp-ep-dp-pp",
            create_gloo_process_groups=args.enable_gloo_process_groups,
        ),
    )
    # Without reruns a NaN gradient is an error at once, instead of a second run of the iteration.
    initialize_rerun_state_machine(mode=RerunMode.DISABLED)
    init_num_microbatches_calculator(
        args.rank,
        args.rampup_batch_size,
        args.global_batch_size,
        args.micro_batch_size,
        args.data_parallel_size,
        args.decrease_batch_size_if_needed,
    )
    seed(args)


def seed(args: argparse.Namespace) -> None:
    """Seeds Python, numpy, torch and Megatron's tracker of generators, as stock Megatron does."""
    value = args.random_seed + 100 * mpu.get_pipeline_model_parallel_rank()
    if args.data_parallel_random_init:
        value += 10 * mpu.get_data_parallel_rank()
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)
    tensor_parallel.model_parallel_cuda_manual_seed(value)


def finish() -> None:
    """Leaves Megatron's groups and the process group."""
    mpu.destroy_model_parallel()
    dist.destroy_process_group()


def is_first_rank() -> bool:
    """Whether this is global rank 0, which writes what all ranks share."""
    return dist.get_rank() == 0


def is_last_rank() -> bool:
    """Whether this is the last global rank: it is on the last pipeline stage, so it knows the loss."""
    return dist.get_rank() == dist.get_world_size() - 1


def any_rank(flag: bool) -> bool:
    """True on all ranks when `flag` is true on one."""
    if dist.get_world_size() == 1:
        return flag
    value = torch.tensor([float(flag)], device="cuda")
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def from_last_rank(value: torch.Tensor) -> torch.Tensor:
    """The last rank's `value`, broadcast to all; every rank passes a tensor of that shape and dtype."""
    dist.broadcast(value, src=dist.get_world_size() - 1)
    return value


def print_last(text: str) -> None:
    """Prints on the last rank, as Megatron does with its log lines."""
    if is_last_rank():
        print(text, flush=True)


def print_first(text: str) -> None:
    """Prints on rank 0."""
    if is_first_rank():
        print(text, flush=True)
