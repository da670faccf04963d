"""Megatron-Core's GPT datasets behind data loaders that start at any sample, and checks of their files."""

from __future__ import annotations

import argparse
import itertools
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import mpu
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
from megatron.core.datasets.indexed_dataset import IndexedDataset, _IndexReader
from megatron.core.datasets.utils import get_blend_from_list
from torch.utils.data import DataLoader, Dataset, Sampler

from .arguments import config_from
from .errors import RecipeError
from .tokenizer import Tokenizer

Batch = dict[str, torch.Tensor]
SPLITS = ("train", "validation", "test")


@dataclass
class Progress:
    """How far a run has come; kept in checkpoints."""

    iteration: int = 0
    consumed_train_samples: int = 0
    consumed_valid_samples: int = 0


def dataset_config(args: argparse.Namespace, tokenizer: Tokenizer) -> GPTDatasetConfig:
    """Megatron-Core's dataset config for the data flags."""
    per_split = [args.train_data_path, args.valid_data_path, args.test_data_path]
    overrides: dict[str, Any] = {"tokenizer": tokenizer}
    if any(per_split):
        overrides |= {"blend_per_split": [get_blend_from_list(paths) for paths in per_split], "split": None}
    else:
        overrides["blend"] = get_blend_from_list(args.data_path)
    return config_from(GPTDatasetConfig, args, overrides)


def wanted_samples(args: argparse.Namespace) -> tuple[int, int, int]:
    """Samples of the whole run for training, validation and test, as stock Megatron counts them."""
    train = args.train_samples or args.train_iters * args.global_batch_size
    iterations = args.train_iters or train // args.global_batch_size
    evaluations = iterations // args.eval_interval + 1 if args.eval_interval else 0
    evaluation = args.eval_iters * args.global_batch_size
    return train, evaluations * evaluation, evaluation


def check_files(prefix: str) -> IndexedDataset:
    """Opens PREFIX.bin and PREFIX.idx; RecipeError when one is missing, no index, or not of the other."""
    for suffix, what in ((".idx", "index"), (".bin", "data")):
        if not os.path.exists(prefix + suffix):
            raise RecipeError(
                f"the {what} file {prefix}{suffix} does not exist: --data-path takes the path of a "
                ".bin/.idx pair without the ending (examples/prepare_data.py makes one)"
            )
    try:
        # The reader alone first: a half-made IndexedDataset complains once more when it is thrown away.
        reader = _IndexReader(prefix + ".idx", multimodal=False)
    except (AssertionError, ValueError, KeyError, OSError, struct.error) as error:
        raise RecipeError(
            f"{prefix}.idx is no index of Megatron's indexed dataset ({error}): make it again"
        ) from error
    described = int(reader.sequence_lengths.sum(dtype=np.int64)) * reader.dtype_size
    actual = os.path.getsize(prefix + ".bin")
    if described != actual:
        raise RecipeError(
            f"{prefix}.idx describes {described} bytes but {prefix}.bin has {actual}: "
            "they are not of the same data"
        )
    return IndexedDataset(prefix)


def check_data(config: GPTDatasetConfig, sizes: Sequence[int]) -> None:
    """Checks every file that `config` names and that each wanted split holds at least one sequence.

    Megatron-Core loops for ever over a split without tokens; here it is a RecipeError.
    """
    needed = config.sequence_length + 1
    if config.blend is not None:
        datasets = {prefix: check_files(prefix) for prefix in config.blend[0]}
        ranges = [(bounds, datasets) for bounds in config.split_matrix]
    else:
        ranges = [
            ((0.0, 1.0), {prefix: check_files(prefix) for prefix in blend[0]}) if blend else (None, {})
            for blend in config.blend_per_split
        ]
    for name, size, (bounds, datasets) in zip(SPLITS, sizes, ranges, strict=True):
        if not size:
            continue
        if bounds is None:
            if name == "test":
                continue
            raise RecipeError(f"there is no {name} data: give it a share in --split, or set --eval-iters 0")
        for prefix, dataset in datasets.items():
            documents = GPTDataset.numel_low_level_dataset(dataset)
            first, last = (round(bound * documents) for bound in bounds)
            tokens = int(dataset.sequence_lengths[first:last].sum())
            if tokens < needed:
                raise RecipeError(
                    f"the {name} split of {prefix} has {tokens} tokens, fewer than one sequence of "
                    f"--seq-length {config.sequence_length}: shorten it or give that split more data"
                )


def build_datasets(args: argparse.Namespace, tokenizer: Tokenizer) -> list[Dataset | None]:
    """Train, validation and test dataset by Megatron-Core's builder; None where a rank or a split has none.

    A collective call. Only the first and the last pipeline stage read tokens and labels.
    """
    config = dataset_config(args, tokenizer)
    sizes = list(wanted_samples(args))
    if config.mock:
        dataset_class: type = MockGPTDataset
    else:
        dataset_class = GPTDataset
        check_data(config, sizes)
    if config.path_to_cache:
        Path(config.path_to_cache).mkdir(parents=True, exist_ok=True)

    def on_this_rank() -> bool:
        return mpu.is_pipeline_first_stage(ignore_virtual=True) or mpu.is_pipeline_last_stage(
            ignore_virtual=True
        )

    return BlendedMegatronDatasetBuilder(dataset_class, sizes, on_this_rank, config).build()


class ShardSampler(Sampler[list[int]]):
    """Sample numbers of one data parallel rank's micro batches, from the first sample not yet consumed.

    Micro batch k of rank r holds `size` samples from number (k * ranks + r) * size of the order on: the
    dataset's own order for `seed` None, else a new permutation in each epoch. What follows depends on
    `consumed` alone, so a resumed run reads what the interrupted one would have read.
    """

    def __init__(self, total: int, consumed: int, size: int, rank: int, ranks: int, seed: int | None) -> None:
        self.total, self.consumed, self.size = total, consumed, size
        self.rank, self.ranks, self.seed = rank, ranks, seed

    def order(self) -> Iterator[int]:
        """Sample numbers of all ranks together."""
        if self.seed is None:
            yield from range(self.consumed, self.total)
            return
        step = self.size * self.ranks
        usable = self.total // step * step
        for epoch in itertools.count(self.consumed // usable):
            permutation = np.random.default_rng([self.seed, epoch]).permutation(self.total)[:usable]
            yield from permutation[
                self.consumed % usable if epoch == self.consumed // usable else 0 :
            ].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        samples = self.order()
        step = self.size * self.ranks
        while len(batch := list(itertools.islice(samples, step))) == step:
            yield batch[self.rank * self.size : (self.rank + 1) * self.size]


def loader(dataset: Dataset | None, consumed: int, args: argparse.Namespace) -> Iterator[Batch] | None:
    """Micro batches of this data parallel rank after `consumed` samples of all ranks; None for None.

    A batch: tokens, labels, position_ids int64 [b, s]; loss_mask float32 [b, s]; attention_mask bool
    [b, 1, s, s] (true where attention is forbidden) unless --no-create-attention-mask-in-dataloader.
    """
    if dataset is None or len(dataset) == 0:
        return None
    sampler = ShardSampler(
        len(dataset),
        consumed,
        args.micro_batch_size,
        mpu.get_data_parallel_rank(),
        mpu.get_data_parallel_world_size(),
        args.random_seed if args.dataloader_type == "cyclic" else None,
    )
    return iter(
        DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=args.num_workers,
            persistent_workers=args.num_workers > 0,
            # Of its own, so that making a loader draws nothing from the generator that a checkpoint restored.
            generator=torch.Generator(),
        )
    )


def build_loaders(
    args: argparse.Namespace, tokenizer: Tokenizer, progress: Progress
) -> tuple[list[Iterator[Batch] | None], list[Iterator[Batch] | None], list[Iterator[Batch] | None]]:
    """Train, validation and test iterators, one for each model chunk of this rank."""
    train, validation, test = build_datasets(args, tokenizer)
    chunks = args.virtual_pipeline_model_parallel_size or 1
    return (
        [loader(train, progress.consumed_train_samples, args) for _ in range(chunks)],
        [loader(validation, progress.consumed_valid_samples, args) for _ in range(chunks)],
        [loader(test, 0, args) for _ in range(chunks)],
    )


def on_device(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    """The batch on the device, with None for an attention mask that was not made."""
    moved: dict[str, torch.Tensor | None] = {
        key: value.cuda(non_blocking=True) for key, value in batch.items() if torch.is_tensor(value)
    }
    moved.setdefault("attention_mask", None)
    return moved
