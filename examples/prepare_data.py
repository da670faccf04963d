"""Makes training data from text that every machine has: the sources of Python's standard library.

    python examples/prepare_data.py --output-dir data [--vocab-size 4096]

writes data/tokenizer/ (a byte-level BPE trained on that text: tokenizer.json, vocab.json, merges.txt) and
data/stdlib.bin, data/stdlib.idx (Megatron's indexed dataset, one document per file). Nothing is downloaded.
Running it again does nothing while the sources and the vocabulary size are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import mindspeed_ms.patch  # noqa: F401 - before Megatron
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_DOCUMENT = "<|endoftext|>"
# Not sources of the library itself: installed packages, and tests, which not every system ships.
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
BATCH = 256


def source_files(root: Path) -> list[Path]:
    """Python files below `root`, sorted, without packages and tests."""
    return sorted(p for p in root.rglob("*.py") if SKIPPED.isdisjoint(p.relative_to(root).parts[:-1]))


def texts_of(files: list[Path]) -> Iterator[str]:
    """Text of each file; bytes that are not UTF-8 are replaced, empty files left out."""
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            yield text


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE (Sennrich et al. 2016, Radford et al. 2019) of `vocab_size` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `folder` for both --tokenizer-type HuggingFaceTokenizer and GPT2BPETokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config |= dict.fromkeys(("bos_token", "eos_token"), END_OF_DOCUMENT)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def fingerprint(files: list[Path], vocab_size: int) -> str:
    """Changes when a source, its size or the vocabulary size changes."""
    facts = [(str(file), file.stat().st_size) for file in files]
    return hashlib.sha256(json.dumps([vocab_size, facts]).encode()).hexdigest()


def prepare(output: Path, vocab_size: int, root: Path) -> None:
    """Writes tokenizer and dataset of the Python files below `root` to `output`, unless they are there."""
    files = source_files(root)
    if not files:
        sys.exit(f"no Python sources below {root}: give a folder with text files by --source-dir")
    done, mark = output / "prepared.json", fingerprint(files, vocab_size)
    if done.exists() and json.loads(done.read_text())["fingerprint"] == mark:
        print(f"{output} is up to date")
        return
    done.unlink(missing_ok=True)
    # Megatron's dataset indices of an earlier text, which it would find again by path and sequence length.
    shutil.rmtree(output / "cache", ignore_errors=True)
    texts = list(texts_of(files))
    print(f"training a BPE of {vocab_size} tokens on {len(texts)} files, {sum(map(len, texts)) / 1e6:.1f} MB")
    tokenizer = train_bpe(texts, vocab_size)
    save_tokenizer(tokenizer, output / "tokenizer")
    dtype, end = DType.optimal_dtype(tokenizer.get_vocab_size()), tokenizer.token_to_id(END_OF_DOCUMENT)
    builder = IndexedDatasetBuilder(str(output / "stdlib.bin"), dtype=dtype)
    tokens = 0
    for start in range(0, len(texts), BATCH):
        for encoding in tokenizer.encode_batch_fast(texts[start : start + BATCH]):
            ids = [*encoding.ids, end]
            builder.add_document(torch.tensor(ids), [len(ids)])
            tokens += len(ids)
    builder.finalize(str(output / "stdlib.idx"))
    done.write_text(json.dumps({"fingerprint": mark, "documents": len(texts), "tokens": tokens}) + "\n")
    print(f"wrote {output / 'stdlib'}.bin and .idx: {len(texts)} documents, {tokens} tokens")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument(
        "--source-dir",
        type=Path,
        default=Path(sysconfig.get_paths()["stdlib"]),
        help="folder whose *.py files are the text; default: the standard library",
    )
    args = parser.parse_args()
    prepare(args.output_dir, args.vocab_size, args.source_dir)


if __name__ == "__main__":
    main()
