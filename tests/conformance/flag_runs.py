"""Runs a group of flags for its two iterations, through the bridge, as a user would."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conformance.flag_groups import Group, words
from tests.conformance.flag_groups_new import ALL_GROUPS

SECONDS = 800
# As many documents as BASE's --split has parts: on a split without any Megatron counts epochs for ever.
WRITE_DATA = """
import sys
import numpy
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
builder = IndexedDatasetBuilder(sys.argv[1] + ".bin", dtype=numpy.uint16)
for document in range(1000):
    builder.add_document(numpy.arange(document, document + 60) % 90, [20, 20, 20])
builder.finalize(sys.argv[1] + ".idx")
"""


def places(folder: Path) -> dict[str, Path]:
    """Files that command lines name: an indexed dataset, tokenizers, the list of data files of each split."""
    data, vocab, merges = folder / "data", folder / "vocab.json", folder / "merges.txt"
    wordpieces = folder / "words.txt"
    tiktoken, splits = folder / "tiktoken.json", folder / "splits.json"
    subprocess.run([sys.executable, "-c", WRITE_DATA, str(data)], check=True, timeout=300)
    letters = [chr(code) for code in range(33, 127)]
    vocab.write_text(json.dumps({word: i for i, word in enumerate([*letters, "<|endoftext|>"])}))
    merges.write_text("#version: 0.2\na b\n")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    wordpieces.write_text("\n".join([*special, *(f"word{i}" for i in range(120))]) + "\n")
    encoded = [base64.b64encode(bytes([i])).decode() for i in range(256)]
    tokens = [{"rank": i, "token_bytes": encoded[i], "token_str": chr(i)} for i in range(256)]
    tiktoken.write_text(json.dumps(tokens))
    splits.write_text(json.dumps({split: [str(data)] for split in ("train", "valid", "test")}))
    return {
        "tmp": folder,
        "data": data,
        "vocab": vocab,
        "merges": merges,
        "words": wordpieces,
        "tiktoken": tiktoken,
        "splits": splits,
    }


def run(checkout: Path, group: Group, folder: Path) -> subprocess.CompletedProcess[str]:
    """The finished run of one group, after that of the group it comes after, or that one if it failed.

    Files are in `folder`.
    """
    if group.after:
        before = run(checkout, ALL_GROUPS[group.after], folder)
        if before.returncode:
            return before
    command = [sys.executable, "-W", "ignore"]
    if group.ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={group.ranks}"]
    command += ["-m", "mindspeed_ms.run", str(Path(checkout) / group.script)]
    return subprocess.run(
        [*command, *words(group, **places(folder))],
        cwd=checkout,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_DEVICE_MAX_CONNECTIONS": "1",
            **dict(group.environment),
        },
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
