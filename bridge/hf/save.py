"""Parameters of this rank into a Hugging Face folder: every rank writes its own bytes of the same files.

The files are made in a hidden folder beside the one that is asked for, at their full size: a disk that
is too small says so before anything is computed. It takes its name only when every byte is written, counted,
on the disk, and summed up: a process killed before that leaves nothing that looks like a model.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from mindspeed_ms.hf.config import Config
from mindspeed_ms.hf.errors import WeightsError
from mindspeed_ms.hf.files import BYTES, DTYPES, INDEX, SINGLE, Folder, some
from mindspeed_ms.hf.load import agree
from mindspeed_ms.hf.plan import Copy, plan, twins
from mindspeed_ms.hf.progress import Progress

SUMS = "SHA256SUMS"
"""Checksums of the weight files, as ``sha256sum -c`` reads them."""

SHARD = 5_000_000_000
"""Most bytes of a weight file, unless a single tensor is larger."""

_CHUNK = 2**24
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".index.json")
_CODES = {dtype: code for code, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """A tensor to write: its shape, and its dtype as safetensors names it."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * BYTES[self.dtype]


@dataclass(frozen=True)
class Shard:
    """A file to write: its header, and where each tensor's bytes begin in it."""

    name: str
    header: bytes
    begins: Mapping[str, int]
    size: int


def shards(entries: Mapping[str, Entry], at_most: int = SHARD) -> list[Shard]:
    """Divide tensors, in their order, over files of no more than ``at_most`` bytes."""
    groups: list[list[str]] = [[]]
    room = at_most
    for key, entry in entries.items():
        if groups[-1] and entry.size > room:
            groups.append([])
            room = at_most
        groups[-1].append(key)
        room -= entry.size
    made = []
    for number, keys in enumerate(groups, 1):
        name = SINGLE if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at, begins = 0, {}
        for key in keys:
            begins[key], end = at, at + entries[key].size
            described[key] = {
                "dtype": entries[key].dtype,
                "shape": list(entries[key].shape),
                "data_offsets": [at, end],
            }
            at = end
        text = json.dumps(described, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        header = struct.pack("<Q", len(text)) + text
        begins = {key: len(header) + begin for key, begin in begins.items()}
        made.append(Shard(name, header, begins, len(header) + at))
    return made


def save(chunks: Sequence[torch.nn.Module], source: Path, target: Path, show: bool = False) -> int:
    """Write the parameters of ``chunks``, GPTModels without wrappers, to the Hugging Face folder ``target``.

    A collective of all ranks, on a file system that they share. ``source`` is the folder that the model came
    from: config.json, tokenizer and whatever else is no weight are copied from it, each tensor gets the dtype
    that it has there, and tensors that the model has no parameter for are carried over. Returns the bytes
    written, by all ranks. A ``target`` of before is replaced. Raises WeightsError if parameters are missing,
    OSError in one sentence if the disk is full.
    """
    work = target.parent / f".{target.name}.partial"
    problem: Exception | None = None
    owned: list[Copy] = []
    try:
        config = Config.read(source)
        before = Folder(source)
        owned = _owned(chunks, config, before)
    except (ValueError, NotImplementedError, OSError) as error:
        problem = error
    agree(problem)
    mine, carried = _mine(owned, before)
    entries = _entries(mine, before, carried)
    files = shards(entries)
    try:
        if _rank() == 0:
            _make(work, files, target)
    except OSError as error:
        problem = error
    agree(problem)
    written: dict[str, int] = {}
    try:
        written = _write(work, files, entries, mine, show)
        if _rank() == 0:
            written.update(_carry(work, files, before, carried))
    except OSError as error:
        problem = _full(error, work)
    except WeightsError as error:
        problem = error
    agree(problem)
    _complete(written, entries, target)
    sums = _sums(work, files)
    try:
        if _rank() == 0:
            _finish(work, source, target, files, sums)
    except OSError as error:
        problem = _full(error, work)
    agree(problem)
    return sum(entry.size for entry in entries.values())


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _owned(chunks: Sequence[torch.nn.Module], config: Config, before: Folder) -> list[Copy]:
    """What this rank and its replicas write, tensors that repeat others included."""
    copies = [copy for copy in plan(chunks, config) if copy.key and copy.owned]
    second = twins(config, before.tensors)
    return copies + [
        copy._replace(key=twin) for twin, key in second.items() for copy in copies if copy.key == key
    ]


def _mine(copies: Sequence[Copy], before: Folder) -> tuple[list[Copy], set[str]]:
    """The copies that this rank writes, its turn among the replicas, and the keys that no rank has."""
    from megatron.core import parallel_state as state

    together = {"with_context_parallel": True}
    turns = {
        False: (state.get_data_parallel_rank(**together), state.get_data_parallel_world_size(**together)),
        True: (state.get_expert_data_parallel_rank(), state.get_expert_data_parallel_world_size()),
    }
    # Replicas of a weight hold the same weights of its kind, in the same order: they take turns.
    written = []
    for kind, (rank, ranks) in turns.items():
        written += [copy for copy in copies if copy.expert is kind][rank::ranks]
    have = set().union(*_gather({copy.key for copy in copies}))
    return written, before.tensors.keys() - have


def _gather(value: Any) -> list[Any]:
    """``value`` of every rank."""
    values = [value]
    if dist.is_initialized():
        values = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
    return values


def _entries(mine: Iterable[Copy], before: Folder, carried: Iterable[str]) -> dict[str, Entry]:
    """Every tensor of the folder to write, of all ranks: first those of the source, in its order."""
    own = {copy.key: Entry(copy.shape, _CODES[copy.target.dtype]) for copy in mine}
    all_of_them: dict[str, Entry] = {}
    for other in _gather(own):
        all_of_them |= other
    stored = {key: Entry(place.shape, place.dtype) for key, place in before.tensors.items()}
    order = [key for key in stored if key in all_of_them or key in set(carried)]
    order += sorted(all_of_them.keys() - stored.keys())
    return {key: stored.get(key) or all_of_them[key] for key in order}


def _make(work: Path, files: Sequence[Shard], target: Path) -> None:
    """Make the files at their full size. Raises OSError in one sentence if there is no room."""
    shutil.rmtree(work, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    work.mkdir()
    try:
        for shard in files:
            with (work / shard.name).open("xb") as opened:
                os.posix_fallocate(opened.fileno(), 0, shard.size)
                opened.write(shard.header)
    except OSError as error:
        raise _full(error, work, sum(shard.size for shard in files)) from None


def _full(error: OSError, work: Path, size: int | None = None) -> OSError:
    """The error of a disk, after the half-written folder was removed."""
    shutil.rmtree(work, ignore_errors=True)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    need = f"{size / 1e9:.2f} GB do not fit on" if size else "there is no room left on"
    return OSError(error.errno, f"{need} the disk of {work.parent}: nothing was written")


@torch.no_grad()
def _write(
    work: Path, files: Sequence[Shard], entries: Mapping[str, Entry], mine: Sequence[Copy], show: bool
) -> dict[str, int]:
    """Write this rank's copies; returns how many numbers of each key."""
    of_key = {key: shard for shard in files for key in shard.begins}
    opened: dict[str, int] = {}
    numbers: dict[str, int] = {}
    total = sum(copy.target.numel() * DTYPES[entries[copy.key].dtype].itemsize for copy in mine)
    try:
        with Progress("saving", total, show) as progress:
            for copy in mine:
                shard, entry = of_key[copy.key], entries[copy.key]
                if shard.name not in opened:
                    opened[shard.name] = os.open(work / shard.name, os.O_WRONLY)
                numbers[copy.key] = numbers.get(copy.key, 0) + copy.target.numel()
                progress.add(_put(opened[shard.name], shard.begins[copy.key], copy, entry))
        for file in opened.values():
            os.fsync(file)
    finally:
        for file in opened.values():
            os.close(file)
    return numbers


def _put(file: int, begin: int, copy: Copy, entry: Entry) -> int:
    """Write one copy at its place, row by row where it has not all columns; returns its bytes."""
    if copy.shape != entry.shape:
        raise WeightsError(
            f"{copy.where} would be {copy.key} of shape {list(copy.shape)}, not {list(entry.shape)}"
        )
    dtype = DTYPES[entry.dtype]
    data = copy.target.cpu().to(dtype).contiguous()
    raw = data.view(-1).view(torch.uint8).numpy().data
    of_row = math.prod(entry.shape[1:]) * dtype.itemsize
    begin += copy.source[0].start * of_row
    if data.dim() == 1 or data.shape[1] == entry.shape[1]:
        _pwrite(file, raw, begin)
    else:
        width = data.shape[1] * dtype.itemsize
        begin += copy.source[1].start * dtype.itemsize
        for row in range(data.shape[0]):
            _pwrite(file, raw[row * width : (row + 1) * width], begin + row * of_row)
    return len(raw)


def _pwrite(file: int, data: memoryview, at: int) -> None:
    while data:
        done = os.pwrite(file, data, at)
        data, at = data[done:], at + done


def _carry(work: Path, files: Sequence[Shard], before: Folder, keys: set[str]) -> dict[str, int]:
    """Copy tensors that no parameter holds from the source; returns how many numbers of each key."""
    of_key = {key: shard for shard in files for key in shard.begins}
    for key in keys:
        place = before.tensors[key]
        with place.file.open("rb") as source, (work / of_key[key].name).open("r+b") as opened:
            source.seek(place.start)
            _pwrite(
                opened.fileno(), memoryview(source.read(place.stop - place.start)), of_key[key].begins[key]
            )
            os.fsync(opened.fileno())
    return {key: math.prod(before.tensors[key].shape) for key in keys}


def _complete(written: Mapping[str, int], entries: Mapping[str, Entry], target: Path) -> None:
    """Raises WeightsError, on all ranks, unless every number of every tensor was written once."""
    numbers = torch.tensor([written.get(key, 0) for key in entries], dtype=torch.int64)
    if dist.is_initialized():
        numbers = numbers.cuda()
        dist.all_reduce(numbers)
    counted = zip(entries, numbers.tolist(), strict=True)
    if wrong := [key for key, number in counted if number != math.prod(entries[key].shape)]:
        raise WeightsError(f"{target} was not written: no rank, or more than one, holds {some(wrong)}")


def _sums(work: Path, files: Sequence[Shard]) -> dict[str, str]:
    """File -> SHA-256, each file read by one rank."""
    own = {}
    for shard in files[_rank() :: _ranks()]:
        digest = hashlib.sha256()
        with (work / shard.name).open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                digest.update(chunk)
        own[shard.name] = digest.hexdigest()
    found: dict[str, str] = {}
    for other in _gather(own):
        found |= other
    return found


def _finish(work: Path, source: Path, target: Path, files: Sequence[Shard], sums: Mapping[str, str]) -> None:
    """Write what goes with the weights, and give the folder its name."""
    for path in source.iterdir():
        if path.is_file() and not path.name.endswith(_WEIGHTS) and path.name != SUMS:
            shutil.copyfile(path, work / path.name)
    if len(files) > 1:
        total = sum(shard.size - len(shard.header) for shard in files)
        listed = {key: shard.name for shard in files for key in shard.begins}
        index = {"metadata": {"total_size": total}, "weight_map": listed}
        (work / INDEX).write_text(json.dumps(index, indent=2))
    (work / SUMS).write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))
    for path in (*work.iterdir(), work):
        _sync(path)
    old = target.parent / f".{target.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    work.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
