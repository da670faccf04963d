"""How fast a Hugging Face folder loads on two ranks (TP 2), and what it takes.

    python tests/benchmarks/hf_load.py [--quick] [--json FILE]

A random Llama of 2.4 GB in bfloat16 (``--quick``: 0.6 GB), in the page cache. In turns: each rank reads as
many bytes of the files as its share is (plain reads into memory that is there), and ``hf.load``. Beside it,
in one process: transformers' from_pretrained, and a copy of every parameter. Marks: 70 % of the bandwidth of
plain reads, bytes read per rank within 1.05 of its share, no more memory of its own than the largest tensor.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/distributed")]

import hugging_face  # noqa: E402
import ranks  # noqa: E402

from tests.benchmarks.report import Report, arguments  # noqa: E402

RANKS, TURNS, CHUNK = 2, 5, 2**24


def config(quick: bool) -> dict[str, Any]:
    """A Llama's."""
    return {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 4 if quick else 20,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 32000 if quick else 64000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }


def make(folder: Path, quick: bool) -> int:
    """Write the folder by transformers; returns the bytes of its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    wanted = config(quick)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**wanted), dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="1GB")
    (folder / "config.json").write_text(json.dumps(wanted | {"dtype": "bfloat16"}))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


class OwnMemory:
    """The most memory of its own (no pages of files) that this process takes in a ``with`` block."""

    def __enter__(self) -> OwnMemory:
        self.before = self.most = self._now()
        self._end = threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._end.wait(0.002):
            self.most = max(self.most, self._now())

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def rank_of_two(rank: int, world: int, store: Any, folder: Path) -> dict[str, Any]:
    """Times of plain reads and of loading, in turns."""
    layout = {"tensor": world}
    hugging_face.start(rank, world, store, layout)
    import torch
    import torch.distributed as dist
    from mindspeed_ms import hf

    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    chunks = [chunk.bfloat16() for chunk in hugging_face.model(folder, layout, vocabulary=vocabulary)]
    share = sum(p.numel() * p.element_size() for chunk in chunks for p in chunk.parameters())
    files = sorted(folder.glob("*.safetensors"))
    buffer = bytearray(CHUNK)
    hf.load(chunks, folder)
    reads, loads = [], []
    for _ in range(TURNS):
        dist.barrier()
        begin, left = time.perf_counter(), share
        for file in files:
            with file.open("rb", buffering=0) as opened:
                while left > 0 and (done := opened.readinto(memoryview(buffer)[: min(CHUNK, left)])):
                    left -= done
        reads.append(time.perf_counter() - begin)
        dist.barrier()
        with OwnMemory() as memory:
            loaded = hf.load(chunks, folder)
        loads.append(loaded.seconds)
    ratio = statistics.median(read / load for read, load in zip(reads, loads, strict=True))
    largest = max(p.numel() * p.element_size() for chunk in chunks for p in chunk.parameters())
    assert torch.isfinite(next(chunks[0].parameters())).all()
    return {
        "share": share,
        "read": loaded.read,
        "seconds": statistics.median(loads),
        "ratio": ratio,
        "memory": memory.most - memory.before,
        "largest": largest,
    }


def transformers_alone(folder: Path) -> float:
    """Seconds of from_pretrained and a copy of every parameter, in this process."""
    import torch
    from transformers import AutoModelForCausalLM

    begin = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    copies = [parameter.detach().clone() for parameter in model.parameters()]
    assert copies
    return time.perf_counter() - begin


def main() -> int:
    """Measure, and hold it against the marks."""
    options = arguments(__doc__).parse_args()
    report = Report("hf_load", "Loading a Hugging Face folder on two ranks", options)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        size = make(folder, options.quick)
        measured = ranks.run(rank_of_two, RANKS, folder, timeout=600)
        other = statistics.median(transformers_alone(folder) for _ in range(3))
    for rank, found in enumerate(measured):
        rate = found["read"] / found["seconds"] / 1e9
        report.row(rank=rank, gb=size / 1e9, **found, gb_per_s=rate)
    ratio = min(found["ratio"] for found in measured)
    over = max(found["read"] / found["share"] for found in measured)
    memory = max(found["memory"] / found["largest"] for found in measured)
    slowest = max(found["seconds"] for found in measured)
    report.summary["transformers' from_pretrained and a copy, seconds"] = other
    report.mark("at least 0.7 of plain reads' bandwidth", ratio >= 0.7, f"{ratio:.2f}")
    report.mark("bytes read within 1.05 of the share", over <= 1.05, f"{over:.3f}")
    report.mark("own memory within the largest tensor", memory <= 1, f"{memory:.2f} of it")
    report.mark("faster than transformers alone", slowest <= other, f"{other / slowest:.1f}x")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
