"""Checkpoints by Megatron-Core's dist_checkpointing, laid out as stock, that survive interruption.

SAVE/latest_checkpointed_iteration.txt     written last: names the newest complete checkpoint
SAVE/iter_0000100/                         made under another name, renamed when complete
SAVE/iter_0000100/checksums.json           CRC-32 of each file, verified before loading
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, mpu, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.serialization import (
    get_default_load_sharded_strategy,
    get_default_save_sharded_strategy,
)
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch.distributed.checkpoint.api import CheckpointException

from .data import Progress
from .distributed import any_rank, is_first_rank, is_last_rank, print_first
from .errors import RecipeError
from .model import known, unwrap
from .report import History

TRACKER = "latest_checkpointed_iteration.txt"
CHECKSUMS = "checksums.json"
HISTORY = "loss_history.json"
CHUNK_BYTES = 1 << 22

Result = TypeVar("Result")


def folder(root: str | Path, iteration: int) -> Path:
    """Folder of one checkpoint."""
    return Path(root) / f"iter_{iteration:07d}"


def check_writable(root: str) -> None:
    """Makes `root` and writes a file there; RecipeError now rather than at the first save."""
    probe = Path(root) / f".writable.{os.getpid()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise RecipeError(
            f"--save {root} cannot be written ({error.strerror}): choose another folder"
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path` so that a reader, or a crash, meets the old text or the new, never a part."""
    part = path.with_name(path.name + ".part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def crc32(path: Path) -> int:
    """CRC-32 of a file's bytes."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            value = zlib.crc32(block, value)
    return value


def files_below(root: Path) -> list[Path]:
    """Files of a checkpoint that its checksums cover."""
    return sorted(p for p in root.rglob("*") if p.is_file() and p.name != CHECKSUMS)


def verify(root: Path) -> None:
    """Compares a checkpoint's files with their checksums; RecipeError names the first that differs.

    A checkpoint without checksums (stock Megatron's) passes.
    """
    if not (root / CHECKSUMS).exists():
        return
    for name, expected in json.loads((root / CHECKSUMS).read_text()).items():
        path = root / name
        if not path.exists() or crc32(path) != expected:
            state = "is damaged" if path.exists() else "is missing"
            others = ", ".join(
                str(i) for i in saved_iterations(root.parent) if folder(root.parent, i) != root
            )
            raise RecipeError(
                f"{path} {state}: this checkpoint cannot be loaded; "
                + (
                    f"load another by --ckpt-step (there are: {others})"
                    if others
                    else "there is no other one"
                )
            )


def saved_iterations(root: str | Path) -> list[int]:
    """Iterations of the complete checkpoints below `root`, ascending."""
    names = (p.name.removeprefix("iter_") for p in Path(root).glob("iter_*"))
    return sorted(int(name) for name in names if name.isdigit())


def latest_iteration(root: str | Path) -> int | None:
    """Iteration that the tracker file names; None without one; RecipeError when it holds something else."""
    tracker = Path(root) / TRACKER
    if not tracker.exists():
        return None
    text = tracker.read_text().strip()
    if not text.isdigit():
        raise RecipeError(
            f"{tracker} holds {text!r} instead of an iteration: write one of {saved_iterations(root)}"
        )
    return int(text)


def rng_state() -> ShardedObject:
    """State of every random generator of this rank, as one sharded object."""
    state = {
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state": torch.cuda.get_rng_state(),
        "rng_tracker_states": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }
    shape = [mpu.get_pipeline_model_parallel_world_size(), mpu.get_tensor_model_parallel_world_size()]
    place = [mpu.get_pipeline_model_parallel_rank(), mpu.get_tensor_model_parallel_rank()]
    replica = mpu.get_data_parallel_rank(with_context_parallel=True)
    if mpu.get_expert_model_parallel_world_size() > 1:
        # Ranks that hold different experts draw different numbers.
        shape.append(mpu.get_data_parallel_world_size(with_context_parallel=True))
        place.append(replica)
        replica = 0
    return ShardedObject("rng_state", [state], tuple(shape), tuple(place), replica_id=replica)


def restore_rng(states: list[dict[str, Any]]) -> None:
    """Sets the generators to what `rng_state` saw."""
    state = states[0]
    random.setstate(state["random_rng_state"])
    np.random.set_state(state["np_rng_state"])
    torch.set_rng_state(state["torch_rng_state"])
    torch.cuda.set_rng_state(state["cuda_rng_state"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["rng_tracker_states"])


def first_line(error: BaseException) -> str:
    """First line of what went wrong; of the first rank's failure where torch collected them (on one rank)."""
    if isinstance(error, CheckpointException):
        if not error.failures:
            return "another rank says why"
        error = next(iter(error.failures.values()))[0]
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Checkpointer:
    """Saves and loads model chunks, optimizer, scheduler, progress, random generators, loss history."""

    def __init__(
        self,
        args: argparse.Namespace,
        model: Sequence[DistributedDataParallel],
        optimizer: MegatronOptimizer,
        scheduler: OptimizerParamScheduler,
        progress: Progress,
        history: History,
    ) -> None:
        self.args, self.model, self.optimizer, self.scheduler = args, model, optimizer, scheduler
        self.progress, self.history = progress, history
        self._last_saved: int | None = None
        self._in_background = AsyncCallsQueue()
        self._written_in_background: int | None = None

    def _metadata(self) -> dict[str, Any]:
        """How the state dict is sharded; stored beside it and needed again to load it."""
        metadata: dict[str, Any] = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
        if self.args.use_distributed_optimizer:
            reshardable = self.args.dist_ckpt_optim_fully_reshardable
            metadata["distrib_optim_sharding_type"] = "fully_reshardable" if reshardable else "dp_reshardable"
        return metadata

    def _sharded_state(
        self, optimizer: bool, rng: bool, loading: bool, metadata: dict[str, Any]
    ) -> dict[str, Any]:
        metadata = {**metadata, "dp_cp_group": mpu.get_data_parallel_group(with_context_parallel=True)}
        state: dict[str, Any] = {}
        for index, chunk in enumerate(self.model):
            key = "model" if len(self.model) == 1 else f"model{index}"
            state[key] = unwrap(chunk).sharded_state_dict(metadata=metadata)
        if optimizer:
            if loading:
                self._allocate_optimizer_state()
            function = self.optimizer.sharded_state_dict
            state["optimizer"] = function(state, is_loading=loading, **known(function, metadata=metadata))
        if rng:
            state["rng_state"] = rng_state()
        return state

    def _inner_optimizers(self) -> list[MegatronOptimizer]:
        return getattr(self.optimizer, "chained_optimizers", [self.optimizer])

    def _allocate_optimizer_state(self) -> None:
        """Gives torch's Adam inside the distributed optimizer its moments, which a checkpoint then fills.

        Megatron-Core's loading is written for Apex's Adam, which can be asked for its state before its first
        step; torch's has none then, and DistributedOptimizer.state_dict fails.
        """
        for inner in self._inner_optimizers():
            if isinstance(inner, DistributedOptimizer):
                inner._init_optimizer_states_with_dummy_values()

    def _adam_states(self) -> list[dict[str, Any]]:
        """State of each parameter in torch's Adam on this rank; their "step" is the same for all."""
        states = (state for inner in self._inner_optimizers() for state in inner.optimizer.state.values())
        return [state for state in states if torch.is_tensor(state.get("step"))]

    def save(self) -> None:
        """Saves the present state; a collective call. With --async-save other processes write it while
        training goes on, and `finish_saving` publishes it.

        Until the last step, the rename and the tracker file, nothing that was saved before is touched.

        Raises:
            RecipeError: a rank could not write; the previous checkpoint stays the newest.
        """
        iteration = self.progress.iteration
        if self._last_saved == iteration:
            return
        self.finish_saving(wait=True)
        request = self._on_all_ranks(iteration, lambda: self._write(self._part(iteration)))
        self._last_saved = iteration
        if request is None:
            self._publish_on_all_ranks(iteration)
        else:
            self._in_background.schedule_async_request(request)
            self._written_in_background = iteration

    def finish_saving(self, wait: bool) -> None:
        """Publishes what --async-save wrote once every rank's writers are done; a collective call.

        `wait`: until they are; otherwise a save that is not written yet stays for the next call.

        Raises:
            RecipeError: a rank could not write; the previous checkpoint stays the newest.
        """
        iteration = self._written_in_background
        if iteration is None:
            return
        finalize = self._in_background.maybe_finalize_async_calls
        if self._on_all_ranks(iteration, lambda: finalize(blocking=wait)):
            self._written_in_background = None
            self._publish_on_all_ranks(iteration)

    def _part(self, iteration: int) -> Path:
        """Where the checkpoint of an iteration is written, until it is complete."""
        target = folder(self.args.save, iteration)
        return target.with_name(f"{target.name}.incomplete")

    def _on_all_ranks(self, iteration: int, function: Callable[[], Result]) -> Result:
        """Result of a part of a save; RecipeError on all ranks when it fails on one."""
        save, failure = self.args.save, None
        try:
            result = function()
        except (
            OSError,
            RuntimeError,
            dist_checkpointing.core.CheckpointingException,
            CheckpointException,
        ) as error:
            failure = error
        if any_rank(failure is not None):
            raise RecipeError(
                f"the checkpoint of iteration {iteration} could not be saved in {save} "
                f"({first_line(failure) if failure else 'another rank says why'}); the newest one there is "
                f"{latest_iteration(save) or 'none'}"
            ) from failure
        return result

    def _publish_on_all_ranks(self, iteration: int) -> None:
        target = folder(self.args.save, iteration)
        if is_first_rank():
            self._publish(iteration, self._part(iteration), target)
        dist.barrier()
        print_first(f"saved checkpoint of iteration {iteration} in {target}")

    def _write(self, part: Path) -> AsyncRequest | None:
        """Writes all of a checkpoint to `part`, or with --async-save returns what is left to write."""
        args = self.args
        if is_first_rank():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        dist.barrier()
        state = self._sharded_state(not args.no_save_optim, not args.no_save_rng, False, self._metadata())
        state |= {
            "checkpoint_version": 3.0,
            "iteration": self.progress.iteration,
            "progress": vars(self.progress).copy(),
            "args": argparse.Namespace(**{k: v for k, v in vars(args).items() if k != "rank"}),
        }
        if not args.no_save_optim:
            state["opt_param_scheduler"] = self.scheduler.state_dict()
            state["adam_step"] = max((int(adam["step"].item()) for adam in self._adam_states()), default=0)
        strategy = get_default_save_sharded_strategy(args.ckpt_format)
        if args.ckpt_fully_parallel_save:
            group = mpu.get_data_parallel_group(with_context_parallel=True)
            strategy = FullyParallelSaveStrategyWrapper(strategy, group)
        function = dist_checkpointing.save
        options = known(function, content_metadata=self._metadata(), async_sharded_save=args.async_save)
        request = function(state, str(part), strategy, **options)
        if is_last_rank():
            (part / HISTORY).write_text(self.history.to_json())
        dist.barrier()
        return request

    def _publish(self, iteration: int, part: Path, target: Path) -> None:
        """Rank 0, everything written: checksums, rename, tracker file; then old checkpoints may go."""
        sums = {str(path.relative_to(part)): crc32(path) for path in files_below(part)}
        write_atomically(part / CHECKSUMS, json.dumps(sums, indent=1))
        replaced = target.with_name(f"{target.name}.replaced")
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)
        part.rename(target)
        before = latest_iteration(target.parent)
        write_atomically(target.parent / TRACKER, str(iteration))
        shutil.rmtree(replaced, ignore_errors=True)
        if self.args.log_progress:
            with (target.parent / "progress.txt").open("a") as file:
                file.write(f"saved iteration {iteration}\n")
        keep = self.args.save_retain_interval
        if keep and before not in (None, iteration) and before % keep:
            old = folder(target.parent, before)
            old.rename(old.with_name(f"{old.name}.removed"))  # half of it must not pass for a checkpoint
        for removed in target.parent.glob("iter_*.removed"):
            shutil.rmtree(removed, ignore_errors=True)

    @torch.no_grad()
    def load(self) -> bool:
        """Loads what --load and --ckpt-step name; a collective call. False when there is no checkpoint.

        Raises:
            RecipeError: the checkpoint is damaged, or of another model or layout.
        """
        args = self.args
        iteration = args.ckpt_step if args.ckpt_step is not None else latest_iteration(args.load)
        if iteration is None:
            if args.exit_on_missing_checkpoint:
                raise RecipeError(f"--load {args.load} has no {TRACKER}: there is no checkpoint to load")
            print_first(f"no checkpoint in {args.load}: starting from iteration 0")
            return False
        source = folder(args.load, iteration)
        if not source.is_dir():
            raise RecipeError(
                f"{source} does not exist; --load has the iterations {saved_iterations(args.load)}"
            )
        problem: RecipeError | None = None
        if is_first_rank():
            try:
                verify(source)
            except RecipeError as error:
                problem = error
        if any_rank(problem is not None):
            raise problem or RecipeError(f"{source} is damaged; rank 0 says where")
        resume = not args.finetune
        with_optimizer = resume and not args.no_load_optim
        with_rng = resume and not args.no_load_rng
        try:
            state = self._read(source, with_optimizer, with_rng)
            for index, chunk in enumerate(self.model):
                unwrap(chunk).load_state_dict(state["model" if len(self.model) == 1 else f"model{index}"])
            if with_optimizer:
                self.optimizer.load_state_dict(state["optimizer"])
                self._load_scheduler(state["opt_param_scheduler"])
                for adam in self._adam_states():
                    # The distributed optimizer gives all parameters one counter, the dummy update's; torch's
                    # Adam would count it up once for each of them.
                    adam["step"] = torch.full_like(adam["step"], state["adam_step"])
            elif args.fp16 or args.bf16 or args.use_distributed_optimizer:
                self.optimizer.reload_model_params()
        except RecipeError:
            raise
        except (Exception, CheckpointException) as error:
            # Whatever the cause, a file, a shape or a layout: the user must learn which checkpoint and why.
            raise RecipeError(
                f"the checkpoint {source} does not fit this run: {first_line(error)}; "
                "use the model and parallel flags that it was saved with, or another one by --ckpt-step"
            ) from error
        if resume:
            for name, value in state["progress"].items():
                setattr(self.progress, name, value)
            if with_rng:
                restore_rng(state["rng_state"])
            if (source / HISTORY).exists():
                self.history.from_json((source / HISTORY).read_text())
            if args.save and Path(args.save).resolve() == Path(args.load).resolve():
                self._last_saved = iteration
        print_first(f"loaded checkpoint of iteration {iteration} from {source}")
        return True

    def _load_scheduler(self, state: dict[str, Any]) -> None:
        try:
            self.scheduler.load_state_dict(state)
        except AssertionError as error:
            raise RecipeError(
                f"{first_line(error)} (in samples): --override-opt_param-scheduler follows the flags, "
                "--use-checkpoint-opt_param-scheduler the checkpoint"
            ) from error

    def _read(self, source: Path, optimizer: bool, rng: bool) -> dict[str, Any]:
        metadata = self._metadata()
        if hasattr(dist_checkpointing, "load_content_metadata"):
            metadata = dist_checkpointing.load_content_metadata(str(source)) or metadata
        strategy = get_default_load_sharded_strategy(str(source))
        if self.args.ckpt_fully_parallel_load:
            group = mpu.get_data_parallel_group(with_context_parallel=True)
            strategy = FullyParallelLoadStrategyWrapper(strategy, group)
        wanted = self._sharded_state(optimizer, rng, True, metadata)
        return dist_checkpointing.load(wanted, str(source), strategy, strict=self.args.dist_ckpt_strictness)
