"""Weights of a Hugging Face folder into the parameters of this rank, by memory map and threads."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from mindspeed_ms.hf.config import Config
from mindspeed_ms.hf.errors import WeightsError
from mindspeed_ms.hf.files import Folder, some
from mindspeed_ms.hf.plan import Copy, check, plan, unused
from mindspeed_ms.hf.progress import Progress

_MOST_THREADS = 8


class Loaded(NamedTuple):
    """What was read: tensors, the bytes that this rank took of them, and the seconds that it took."""

    tensors: int
    read: int
    seconds: float


def load(chunks: Sequence[torch.nn.Module], folder: Path, show: bool = False) -> Loaded:
    """Fill the parameters of ``chunks``, GPTModels without wrappers, from a Hugging Face folder.

    A collective of all ranks once torch.distributed is on: what is wrong on one is raised on all. ``show``:
    draw a progress line. Raises WeightsError, ConfigError or UnsupportedModelError; parameters are then as
    before.
    """
    begin = time.perf_counter()
    problem: Exception | None = None
    copies: list[Copy] = []
    _keep_in_float32(chunks)
    try:
        config = Config.read(folder)
        files = Folder(folder)
        copies = plan(chunks, config)
        check(copies, files.tensors, files)
    except (ValueError, NotImplementedError, OSError) as error:
        problem = error
    agree(problem)
    with files:
        _all_used(config, files, copies)
        files.map()
        total = sum(_size(copy, files) for copy in copies)
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        threads = max(1, min(_MOST_THREADS, (os.cpu_count() or 1) // ranks))
        with Progress("loading", total, show) as progress, ThreadPoolExecutor(threads) as pool:
            for done in as_completed([pool.submit(_fill, copy, files) for copy in copies]):
                progress.add(done.result())
    return Loaded(len({copy.key for copy in copies if copy.key}), total, time.perf_counter() - begin)


def _keep_in_float32(chunks: Sequence[torch.nn.Module]) -> None:
    """The bias of experts, which --bf16 cast with the model; Megatron does so before each of its uses."""
    for chunk in chunks:
        for module in chunk.modules():
            if keep := getattr(module, "_maintain_float32_expert_bias", None):
                keep()


def agree(problem: Exception | None) -> None:
    """Raise ``problem``, or that of another rank, on every rank."""
    problems: list[Exception | None] = [problem]
    if dist.is_initialized():
        problems = [None] * dist.get_world_size()
        dist.all_gather_object(problems, problem)
    first = problem or next(filter(None, problems), None)
    if first is not None:
        raise first


def _all_used(config: Config, files: Folder, copies: Sequence[Copy]) -> None:
    """Raises WeightsError, on all ranks, if none of them uses a key that is not known to be unused."""
    keys = sorted(files.tensors)
    taken = {copy.key for copy in copies}
    used = torch.tensor([key in taken for key in keys], dtype=torch.int32)
    if dist.is_initialized():
        used = used.cuda()
        dist.all_reduce(used, op=dist.ReduceOp.MAX)
    known = {key for key, of in zip(keys, used.tolist(), strict=True) if of}
    left = set(keys) - known
    if wrong := sorted(left - unused(config, left, known)):
        raise WeightsError(f"{files.path} holds {some(wrong)}, for which the model has no parameter")


def _size(copy: Copy, files: Folder) -> int:
    """Bytes that a copy reads."""
    if not copy.key:
        return 0
    return copy.target.numel() * files.view(copy.key).element_size()


@torch.no_grad()
def _fill(copy: Copy, files: Folder) -> int:
    """Make one copy; returns the bytes read."""
    if not copy.key:
        copy.target.zero_()
        return 0
    stored = files.view(copy.key)
    of_row = math.prod(stored.shape[1:]) * stored.element_size()
    files.prefetch(copy.key, copy.source[0].start * of_row, copy.source[0].stop * of_row)
    part = stored[copy.source]
    if copy.target.device.type != "cpu":
        part = part.contiguous()
    copy.target.copy_(part)
    return part.numel() * part.element_size()
