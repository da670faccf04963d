"""tools/preprocess_data.py of a Megatron-LM checkout with every tokenizer that needs no download."""

import base64
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.reference.stock_script import train  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LINES = ["the cat sat on the mat", "a dog ran after the cat", "the mat was on the floor"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """Vocabularies made here from the letters of LINES: name -> path."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("tokenizers")
    letters = sorted({*"".join(LINES)} - {" "})
    (folder / "words.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)])
    )
    pieces = [*letters, *(f"\u0120{c}" for c in letters), "\u0120", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(f"\u0120 {c}" for c in letters) + "\n")
    tokens = [
        {"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": ""} for i in range(256)
    ]
    (folder / "tiktoken.json").write_text(json.dumps(tokens))
    (folder / "corpus.txt").write_text("\n".join(LINES * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "pieces"), vocab_size=24, minloglevel=2
    )
    _save_for_transformers(letters, folder / "huggingface")
    return {path.stem if path.suffix != ".model" else "model": str(path) for path in folder.iterdir()}


def _save_for_transformers(letters: list[str], folder: Path) -> None:
    """A folder that transformers' AutoTokenizer reads: words of letters, one unknown word, one end."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {piece: i for i, piece in enumerate([*letters, "[UNK]", "<eos>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


TOKENIZERS = {
    "NullTokenizer": "--vocab-size 100",
    "BertWordPieceLowerCase": "--vocab-file {words} --legacy-tokenizer",
    "BertWordPieceCase": "--vocab-file {words} --legacy-tokenizer",
    "GPT2BPETokenizer": "--vocab-file {vocab} --merge-file {merges} --legacy-tokenizer",
    "SentencePieceTokenizer": "--tokenizer-model {model}",
    "GPTSentencePieceTokenizer": "--tokenizer-model {model} --legacy-tokenizer",
    "Llama2Tokenizer": "--tokenizer-model {model} --legacy-tokenizer",
    "HuggingFaceTokenizer": "--tokenizer-model {huggingface}",
    "TikTokenizer": "--tokenizer-model {tiktoken} --tiktoken-pattern v2 --vocab-size 256 "
    "--tiktoken-num-special-tokens 10",
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_makes_indexed_data(name, files, megatron_lm_path, tmp_path):
    if name == "HuggingFaceTokenizer":
        pytest.importorskip("transformers", reason="HuggingFaceTokenizer is the package transformers")
    tool = (megatron_lm_path / "tools/preprocess_data.py").resolve()
    lines = ["7 8 9", "10", "99 0"] if name == "NullTokenizer" else LINES
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    flags = ["--input", "text.jsonl", "--output-prefix", "data", "--workers", "1", "--append-eod"]
    flags += ["--tokenizer-type", name, *(word.format(**files) for word in TOKENIZERS[name].split())]
    if not (megatron_lm_path / "megatron/core/tokenizers").is_dir():  # all tokenizers are of that kind there
        flags = [flag for flag in flags if flag != "--legacy-tokenizer"]
    run = train(tool, flags, tmp_path, way="run")
    assert not run.error, f"{run.error}\n{run.output[-4000:]}"
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    documents = IndexedDataset(str(tmp_path / "data_text_document"))
    assert len(documents) == 3
    assert all(len(document) >= 2 for document in documents)
