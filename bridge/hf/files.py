"""A Hugging Face folder on disk: config.json and the safetensors files, memory-mapped and checked.

The format is https://github.com/huggingface/safetensors: eight bytes with the length of a JSON header (key ->
dtype, shape, offsets), the header, the data. Nothing of transformers or safetensors is imported.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mindspeed_ms.hf.errors import ConfigError, WeightsError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""The names that safetensors gives to the dtypes of weights; quantised weights have others."""

BYTES: dict[str, int] = {
    **{code: dtype.itemsize for code, dtype in DTYPES.items()},
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16"), 2),
    **dict.fromkeys(("I32", "U32"), 4),
    **dict.fromkeys(("I64", "U64", "C64"), 8),
}
"""Bytes of a number of each dtype that safetensors knows, weights or not."""

_POPULATE_READ = 22  # madvise(2), Linux 5.14: read ahead and map a range at once, not page by page
_LARGEST_HEADER = 100_000_000  # the limit that the format itself sets


class Stored(NamedTuple):
    """Where a tensor lies: ``start`` and ``stop`` are bytes of ``file``."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ConfigError if there is none, or something else."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path.parent} has no {path.name}: is it a Hugging Face folder?") from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as JSON ({error}): copy it again") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__} where an object is expected")
    return values


def header(file: Path) -> dict[str, Stored]:
    """Key -> place of every tensor of a safetensors file. Raises WeightsError if the file is not whole."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            entries = json.loads(opened.read(length))
        entries.pop("__metadata__", None)
        found = {}
        for key, entry in entries.items():
            start, stop = (8 + length + int(offset) for offset in entry["data_offsets"])
            found[key] = Stored(file, entry["dtype"], tuple(map(int, entry["shape"])), start, stop)
    except FileNotFoundError:
        raise WeightsError(f"{file} is missing: copy it again") from None
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise WeightsError(f"{file} is no whole safetensors file ({error}): copy it again") from None
    end = 8 + length
    for key, stored in sorted(found.items(), key=lambda item: item[1].start):
        itemsize = BYTES.get(stored.dtype)
        if stored.start != end or (itemsize and stored.stop - end != itemsize * math.prod(stored.shape)):
            raise WeightsError(f"{file} has a damaged header ({key} does not fit its place): copy it again")
        end = stored.stop
    if end != size:
        kind = "too short" if size < end else "longer than its header says"
        raise WeightsError(f"{file} is {kind} ({size} bytes, not {end}): copy it again")
    return found


class Folder:
    """The weights of a Hugging Face folder.

    ``tensors`` maps each key to its place. Raises WeightsError if a shard is missing, damaged, or holds other
    keys than the index says. Close it, or leave its ``with`` block, to give the mappings back.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, Stored] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        for file, listed in self._shards().items():
            keys = header(file)
            if listed is not None and (wrong := sorted(listed ^ keys.keys())):
                raise WeightsError(f"{INDEX} and {file.name} of {path} disagree on {some(wrong)}")
            self.tensors |= keys

    def _shards(self) -> Mapping[Path, set[str] | None]:
        """File -> the keys that the index lists for it, or None without an index."""
        if (self.path / INDEX).is_file():
            shards: defaultdict[Path, set[str]] = defaultdict(set)
            try:
                for key, name in read_json(self.path / INDEX)["weight_map"].items():
                    shards[self.path / Path(name).name].add(key)
            except (KeyError, AttributeError, TypeError):
                raise WeightsError(f"{self.path / INDEX} has no weight_map of key to file") from None
            return shards
        if (self.path / SINGLE).is_file():
            return {self.path / SINGLE: None}
        others = sorted(p.name for p in self.path.glob("pytorch_model*.bin"))
        found = f"only {others[0]}, which this does not read: save it as safetensors" if others else "none"
        raise WeightsError(f"{self.path} should hold {SINGLE} or {INDEX}, and there is {found}")

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the files; tensors that still look at one keep it."""
        for mapped in self._maps.values():
            with suppress(BufferError):
                mapped.close()
        self._maps.clear()

    def map(self) -> None:
        """Map every file now, so that threads find them."""
        for file in {stored.file for stored in self.tensors.values()}:
            with file.open("rb") as opened:
                self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)

    def view(self, key: str) -> torch.Tensor:
        """The tensor ``key``, of its own shape and dtype, in the mapped file: read-only, nothing is read."""
        place = self.tensors[key]
        raw = np.frombuffer(self._maps[place.file], np.uint8, place.stop - place.start, place.start)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch has no read-only tensors, and says so
            data = torch.from_numpy(raw)
        dtype = DTYPES[place.dtype]
        if place.start % dtype.itemsize:  # a header whose length is no multiple of eight
            data = data.clone()
        return data.view(dtype).view(place.shape)

    def prefetch(self, key: str, first: int, last: int) -> None:
        """Have bytes ``first`` to ``last`` of tensor ``key`` in memory, as one request."""
        place = self.tensors[key]
        start = (place.start + first) // mmap.PAGESIZE * mmap.PAGESIZE
        with suppress(OSError):  # an older kernel maps page by page
            self._maps[place.file].madvise(_POPULATE_READ, start, place.start + last - start)


def some(names: Iterable[str], at_most: int = 3) -> str:
    """A few of many names, for a sentence."""
    names = list(names)
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more
