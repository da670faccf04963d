"""Stock scripts of a Megatron-LM checkout, none of their lines edited: starts, data, checkpoints, features.

Each takes half a minute or more:
``MEGATRON_LM_PATH=DIR pytest -m slow tests/distributed/test_stock_features.py``.
"""

import json
import random
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.distributed.stock_features import FEATURES, Feature  # noqa: E402
from tests.reference.stock_script import MOCK, MODEL, WAYS, Run, checkout_of, deviation, train  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(900)]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = [f"word{i}" for i in range(400)]
SHORT = ["--num-layers", "2", "--global-batch-size", "4", "--save-interval", "2"]


def script(megatron_lm_path: Path, name: str) -> Path:
    """A script of the checkout; the test is skipped where the checkout does not have it."""
    path = (megatron_lm_path / name).resolve()
    if not path.is_file():
        pytest.skip(f"this checkout has no {name}")
    return path


def without(flags: list[str], names: tuple[str, ...]) -> list[str]:
    """``flags`` less those named, with their values."""
    kept, dropping = [], False
    for word in flags:
        dropping = word in names if word.startswith("--") else dropping
        if not dropping:
            kept.append(word)
    return kept


def succeeded(run: Run) -> Run:
    assert not run.error, f"{run.error}\n{run.output[-6000:]}"
    return run


@pytest.fixture(scope="session")
def corpus(megatron_lm_path, tmp_path_factory) -> dict[str, str]:
    """A vocabulary and indexed data, made by the checkout's tools/preprocess_data.py: name -> path."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(1)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join([*SPECIAL, *WORDS]) + "\n")
    with (folder / "text.jsonl").open("w") as text:
        for _ in range(150):
            sentences = [" ".join(draw.choices(WORDS, k=12)) for _ in range(8)]
            text.write(json.dumps({"sentences": sentences}) + "\n")
    flags = ["--input", str(folder / "text.jsonl"), "--json-keys", "sentences", "--workers", "1"]
    flags += ["--output-prefix", str(folder / "data"), "--tokenizer-type", "BertWordPieceLowerCase"]
    flags += ["--vocab-file", str(vocabulary)]
    if (megatron_lm_path / "megatron/core/tokenizers").is_dir():  # there it needs a package, transformers
        flags.append("--legacy-tokenizer")
    tool = script(megatron_lm_path, "tools/preprocess_data.py")
    succeeded(train(tool, flags, folder, way="run"))
    return {"vocab": str(vocabulary), "sentences": str(folder / "data_sentences_document")}


START = [*MODEL, *MOCK, *SHORT, "--train-iters", "3"]


@pytest.fixture(scope="module")
def started(megatron_lm_path, tmp_path_factory) -> Run:
    """The run by ``mindspeed-ms run``."""
    folder = tmp_path_factory.mktemp("run")
    return succeeded(train(script(megatron_lm_path, "pretrain_gpt.py"), START, folder, way="run"))


@pytest.mark.parametrize("way", [way for way in WAYS if way != "run"])
def test_every_start_trains_the_same(way, started, megatron_lm_path, tmp_path):
    run = succeeded(train(script(megatron_lm_path, "pretrain_gpt.py"), START, tmp_path, way=way))
    assert len(run.losses) == 3
    assert run.losses == started.losses


@pytest.mark.parametrize("name", FEATURES)
def test_feature(name, megatron_lm_path, corpus, tmp_path):
    feature: Feature = FEATURES[name]
    path = script(megatron_lm_path, feature.script)
    model = without([*MODEL, *SHORT], feature.without)
    model += [*(MOCK if feature.mock else []), "--train-iters", "3"]
    places = corpus | {"folder": str(tmp_path)}
    for flags in filter(None, (feature.after, feature.flags or "--no-save-optim")):
        words = [word.format(**places) for word in flags.split()]
        run = train(path, [*model, *words], tmp_path, ranks=feature.ranks, timeout=400, **feature.variables)
        if feature.stops:
            assert run.error
        else:
            succeeded(run)
    assert len(run.losses) == feature.iterations
    for pattern in feature.says:
        assert re.search(pattern, run.output), pattern
    for pattern in feature.leaves:
        assert any(tmp_path.glob(pattern)), pattern


ASYNC = "--use-distributed-optimizer --async-save --ckpt-format torch_dist"
FSDP2 = "--use-torch-fsdp2 --untie-embeddings-and-output-weights --ckpt-format torch_dcp"
MEGATRON_FSDP = (
    "--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params --use-distributed-optimizer "
    "--ckpt-format fsdp_dtensor"
)
# FSDP shards a model that is on its device, and Megatron refuses to fuse the sums of its gradients
ON_DEVICE = (("--use-cpu-initialization",), "--no-gradient-accumulation-fusion")
RESUMED = {
    "async": (ASYNC, 2),
    "async bfloat16": (f"{ASYNC} --bf16", 2),
    "async by a persistent worker": (f"{ASYNC} --use-persistent-ckpt-worker", 2),
    "legacy format": ("--ckpt-format torch", 1),
    "torch FSDP2": (FSDP2, 2),
    "Megatron FSDP": (MEGATRON_FSDP, 2),
    "Megatron FSDP from device meta": (f"{MEGATRON_FSDP} --init-model-with-meta-device", 2),
}
"""Flags and ranks of a run that is saved after two iterations and resumed."""


@pytest.mark.parametrize("name", RESUMED)
def test_resumes_on_the_same_curve(name, megatron_lm_path, tmp_path):
    flags, ranks = RESUMED[name]
    gpt = script(megatron_lm_path, "pretrain_gpt.py")
    model = [*MODEL, *MOCK, *SHORT, *flags.split(), "--train-iters", "5", "--hidden-dropout", "0.1"]
    strategies = megatron_lm_path / "megatron/core/dist_checkpointing/strategies"
    if "persistent" in flags and (strategies / "nvrx.py").is_file():
        model += ["--async-strategy", "mcore"]  # from 0.17 on Megatron's own worker is not the default
    if "fsdp" in flags:
        left_out, added = ON_DEVICE
        model = [*without(model, left_out), added]
    save = ["--save", str(tmp_path / "ckpt")]
    whole = succeeded(train(gpt, [*model, *save], tmp_path, ranks=ranks))
    load = ["--load", str(tmp_path / "ckpt"), "--ckpt-step", "2"]
    resumed = succeeded(train(gpt, [*model, *load], tmp_path, ranks=ranks))
    assert sorted(resumed.losses) == [3, 4, 5]
    # the second line of a run is a mean of two losses (stock_script.losses)
    assert deviation(resumed.losses, {i: whole.losses[i] for i in (3, 5)}) <= 1e-6


CONVERTED = {
    "core_v0.12.3": "--target-tensor-parallel-size 2",
    # from 0.13 on its saver makes layers of the whole size: without process groups they take theirs for one
    # rank ("The size of tensor a (8192) must match the size of tensor b (4096)", as on plain torch)
    "core_v0.13.1": "--target-pipeline-parallel-size 2",
    # from 0.15 on its loader fails: "model_provider() missing 1 required positional argument"
}
"""Tag -> what tools/checkpoint/convert.py can do there."""


@pytest.mark.parametrize("tag", CONVERTED)
def test_checkpoint_converter_splits_a_model(tag, megatron_lm_path, tmp_path):
    checkout = checkout_of(tag, megatron_lm_path, tmp_path)
    if checkout is None:
        pytest.skip(f"neither beside {megatron_lm_path} nor in it is the tag {tag}")
    gpt = checkout / "pretrain_gpt.py"
    # there mock data holds tokens up to 4095 whatever the vocabulary
    model = [*MODEL, *MOCK, *SHORT, "--vocab-size", "8191", "--ckpt-format", "torch"]
    save = ["--save", "one", "--train-iters", "2"]
    succeeded(train(gpt, [*model, *save], tmp_path))
    words = f"--model-type GPT --loader core --saver core {CONVERTED[tag]} --load-dir one "
    words += f"--save-dir two --megatron-path {checkout}"
    tool = checkout / "tools/checkpoint/convert.py"
    succeeded(train(tool, words.split(), tmp_path, way="run", CUDA_DEVICE_MAX_CONNECTIONS="1"))
    load = ["--train-iters", "3", "--no-load-optim", "--no-load-rng", "--finetune"]
    one = succeeded(train(gpt, [*model, *load, "--load", "one"], tmp_path))
    layout = CONVERTED[tag].replace("target-", "").replace("parallel", "model-parallel")
    split = [*layout.split(), "--load", "two"]
    two = succeeded(train(gpt, [*model, *load, *split], tmp_path, ranks=2, CUDA_DEVICE_MAX_CONNECTIONS="1"))
    assert deviation(two.losses, one.losses) <= 1e-4
