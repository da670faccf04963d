"""Byte-level BPE tokenizers by PyPI's `tokenizers`, under stock Megatron's names, and NullTokenizer."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from .errors import RecipeError

END_OF_DOCUMENT = "<|endoftext|>"


class BpeTokenizer:
    """A `tokenizers.Tokenizer` with the attributes that Megatron-Core's datasets ask for."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, end_of_document: str = END_OF_DOCUMENT) -> None:
        """Raises RecipeError when the vocabulary lacks the token that ends a document."""
        self._tokenizer = tokenizer
        end = tokenizer.token_to_id(end_of_document)
        if end is None:
            raise RecipeError(f"the tokenizer has no token {end_of_document!r} to end a document with")
        self.eod: int = end
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def unique_identifiers(self) -> OrderedDict[str, object]:
        """What tells this tokenizer from others in the name of a dataset's cache."""
        return OrderedDict({"class": type(self).__name__, "vocab_size": self.vocab_size})

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`, without an end-of-document token."""
        return self._tokenizer.encode(text).ids

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`tokenize` of each text, on all cores."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def detokenize(self, ids: Iterable[int]) -> str:
        """Text of the token ids, special tokens left out."""
        return self._tokenizer.decode(list(ids))

    def save(self, folder: Path) -> None:
        """Writes `folder` for both --tokenizer-type HuggingFaceTokenizer and GPT2BPETokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(folder / "tokenizer.json"))
        self._tokenizer.model.save(str(folder))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_OF_DOCUMENT,
            "bos_token": END_OF_DOCUMENT,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


class NullTokenizer:
    """Numbers as text: for made-up data. Token `vocab_size` of the flag ends a document, as in Megatron."""

    def __init__(self, vocab_size: int) -> None:
        self.eod = vocab_size
        self.vocab_size = vocab_size + 1

    @property
    def unique_identifiers(self) -> OrderedDict[str, object]:
        """See BpeTokenizer."""
        return OrderedDict({"class": type(self).__name__, "vocab_size": self.vocab_size})

    def tokenize(self, text: str) -> list[int]:
        """The numbers in `text`."""
        return [int(word) for word in text.split()]

    def detokenize(self, ids: Iterable[int]) -> str:
        """The ids with blanks between them."""
        return " ".join(map(str, ids))


Tokenizer = BpeTokenizer | NullTokenizer


def train_bpe(texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """Trains a byte-level BPE (Sennrich et al. 2016, Radford et al. 2019) of `vocab_size` tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return BpeTokenizer(tokenizer)


def existing(path: str | None, flag: str, tokenizer_type: str) -> Path:
    """`path`, which `flag` gave, as a Path that exists."""
    if path is None:
        raise RecipeError(f"--tokenizer-type {tokenizer_type} needs {flag}")
    if not Path(path).exists():
        raise RecipeError(f"{flag} {path} does not exist")
    return Path(path)


def build_tokenizer(args: argparse.Namespace) -> Tokenizer:
    """The tokenizer that --tokenizer-type and its companions name; RecipeError if its files are missing."""
    kind = args.tokenizer_type
    if kind == "NullTokenizer":
        if args.vocab_size is None:
            raise RecipeError("--tokenizer-type NullTokenizer needs --vocab-size")
        return NullTokenizer(args.vocab_size)
    if kind == "GPT2BPETokenizer":
        vocab = existing(args.vocab_file, "--vocab-file", kind)
        merges = existing(args.merge_file, "--merge-file", kind)
        tokenizer = tokenizers.Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([END_OF_DOCUMENT])
        return BpeTokenizer(tokenizer)
    path = existing(args.tokenizer_model, "--tokenizer-model", kind)
    folder = path if path.is_dir() else path.parent
    file = folder / "tokenizer.json" if path.is_dir() else path
    if not file.exists():
        raise RecipeError(f"--tokenizer-model {path} has no tokenizer.json")
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text()) if config_file.exists() else {}
    end = config.get("eos_token") or END_OF_DOCUMENT
    return BpeTokenizer(
        tokenizers.Tokenizer.from_file(str(file)), end["content"] if isinstance(end, dict) else end
    )
