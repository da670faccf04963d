"""Megatron's trainer by examples/pretrain_gpt.py on the device: resume, a signal, route strict, real data."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.reference import stock_script  # noqa: E402
from tests.reference.stock_script import AVERAGED, MOCK, MODEL, PLAIN, PLAIN_FLAGS, train  # noqa: E402

# A model that trains in seconds; tests add flags, the last one given wins.
SMALL = "--num-layers 2 --hidden-size 64 --seq-length 64 --max-position-embeddings 64 --global-batch-size 4"
SMALL = [*MODEL, *MOCK, *SMALL.split(), "--vocab-size", "127"]
# What turns it into a Llama with experts; it meets every operator that a GPT of ours can meet.
LLAMA = (
    "--swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear --num-experts 4 "
    "--group-query-attention --num-query-groups 2 --untie-embeddings-and-output-weights "
    "--moe-router-topk 2 --moe-aux-loss-coeff 1e-2 --moe-token-dispatcher-type alltoall --moe-permute-fusion"
)
DROPOUT = ["--attention-dropout", "0.1", "--hidden-dropout", "0.1"]
STRICT = {"MINDSPEED_MS_ROUTE": "strict"}


@pytest.mark.parametrize(
    "flags",
    [
        DROPOUT,
        [*DROPOUT, "--use-distributed-optimizer", "--bf16"],
        pytest.param([*DROPOUT, *LLAMA.split()], marks=pytest.mark.slow),
        pytest.param(["--fp16", "--initial-loss-scale", "1024"], marks=pytest.mark.slow),
        pytest.param(["--dataloader-type", "cyclic"], marks=pytest.mark.slow),
    ],
    ids=["fp32", "bf16, distributed optimizer", "experts", "fp16", "cyclic"],
)
def test_resumed_run_repeats_the_uninterrupted_one(pretrain, tmp_path, flags):
    # With dropout weights, moments, schedule, data and random generators must all come back.
    flags = [*SMALL, *flags, "--train-iters", "7"]
    saved = ["--save", str(tmp_path / "saved"), "--save-interval", "3"]
    whole = train(pretrain, [*flags, *saved], tmp_path, way="run")
    resumed = train(pretrain, [*flags, "--load", saved[1], "--ckpt-step", "3"], tmp_path, way="run")
    assert list(whole.losses) == list(range(1, 8)), whole.output[-4000:]
    expected = {i: loss for i, loss in whole.losses.items() if i > 3}
    assert list(resumed.losses) == list(expected), resumed.output[-4000:]
    del expected[3 + AVERAGED], resumed.losses[3 + AVERAGED]
    assert resumed.losses == expected


def test_sigterm_saves_and_ends(pretrain, tmp_path):
    # More iterations than the time limit allows: only the signal can end this run.
    flags = [*SMALL, "--train-iters", "100000", "--exit-signal-handler", "--save", str(tmp_path / "saved")]
    process = subprocess.Popen(
        [sys.executable, "-m", "mindspeed_ms", "run", str(pretrain), *flags, "--save-interval", "100000"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        lines = []
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            lines.append(process.stdout.readline())
            if "lm loss" in lines[-1] or not lines[-1]:
                break
        process.send_signal(signal.SIGTERM)
        lines.append(process.communicate(timeout=200)[0])
    finally:
        process.kill()
    text = "".join(lines)
    assert process.returncode == 0, text[-4000:]
    saved = int((tmp_path / "saved" / "latest_checkpointed_iteration.txt").read_text())
    assert max(stock_script.losses(text)) == saved, text[-2000:]
    assert (tmp_path / "saved" / f"iter_{saved:07d}" / ".metadata").exists()


@pytest.mark.parametrize("model", ["", LLAMA], ids=["gpt2", "llama with experts"])
def test_strict_trains_to_the_losses_of_plain_torch(model, pretrain, tmp_path):
    flags = [*SMALL, *model.split(), "--train-iters", "2"]
    without = [flag for flag in flags if flag != "--moe-permute-fusion"]
    plain = train(pretrain, [*without, *PLAIN_FLAGS], tmp_path, way=PLAIN)
    report = tmp_path / "coverage.json"
    strict = train(pretrain, flags, tmp_path, way="run", MINDSPEED_MS_COVERAGE=str(report), **STRICT)
    assert not strict.error, strict.output[-4000:]
    assert list(plain.losses) == [1, 2], plain.output[-4000:]
    # MindSpore's exp is right to 5e-6 (fenced): it is in every softmax and in the loss.
    assert strict.losses == pytest.approx(plain.losses, rel=1e-5)
    rows = json.loads(report.read_text())["rows"]
    assert ("aten::mm", "mindspore") in {(row["op"], row["route"]) for row in rows}


def test_strict_names_the_operator_that_has_no_kernel(pretrain, tmp_path):
    """MindSpore's CPU backend has no bfloat16 kernels to speak of."""
    run = train(pretrain, [*SMALL, "--train-iters", "1", "--bf16"], tmp_path, way="run", **STRICT)
    assert "MINDSPEED_MS_ROUTE=strict: aten::" in run.error
    assert "has neither a MindSpore nor a csrc kernel" in run.error


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Data made by examples/prepare_data.py from a part of the standard library: json, email and logging."""
    folder = tmp_path_factory.mktemp("corpus")
    library = Path(json.__file__).parents[1]
    for package in ("json", "email", "logging"):
        shutil.copytree(library / package, folder / "sources" / package)
    for said in ("wrote", "is up to date"):  # a second time there is nothing to do
        assert said in stock_script.prepare_data(
            folder / "data", 512, "--source-dir", str(folder / "sources")
        )
    return folder / "data"


def test_data_of_the_standard_library_trains(data, pretrain, tmp_path):
    flags = [
        *MODEL,
        *stock_script.data_flags(data),
        "--train-iters",
        "6",
        "--lr",
        "2e-3",
        "--num-layers",
        "2",
    ]
    run = train(pretrain, flags, tmp_path, way="run")
    assert list(run.losses) == list(range(1, 7)), run.output[-4000:]
    assert run.losses[1] == pytest.approx(6.24, abs=0.3)  # log 512: nothing is known yet
    assert run.losses[6] < run.losses[1] - 0.1


def test_tokenizer_files_of_both_kinds_agree(data):
    from transformers import AutoTokenizer, GPT2TokenizerFast

    text = Path(json.__file__).read_text()
    files = (str(data / "tokenizer" / name) for name in ("vocab.json", "merges.txt"))
    one, other = AutoTokenizer.from_pretrained(data / "tokenizer"), GPT2TokenizerFast(*files)
    assert one.encode(text) == other.encode(text)
    assert one.decode(one.encode(text)) == text
    assert one.eos_token_id == other.eos_token_id == 0


IMPORTS_MEGATRON_FIRST = """
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.torch_norm import WrappedTorchNorm
import mindspeed_ms.patch
import torch

config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1, persist_layer_norm=True)
x = torch.arange(8.0, device="cuda").reshape(1, 8)
print(WrappedTorchNorm(config, 8).cuda()(x).cpu().tolist()[0][0])
"""


def test_megatron_imported_before_the_patch_works(tmp_path):
    # Patches reach modules that are there already, and names copied from them.
    script = tmp_path / "late.py"
    script.write_text(IMPORTS_MEGATRON_FIRST)
    done = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    assert "Megatron was imported before mindspeed_ms.patch" in done.stderr
    # (0 - 3.5) / sqrt(variance of 0..7 + eps)
    assert float(done.stdout.split()[-1]) == pytest.approx(-3.5 / (5.25 + 1e-5) ** 0.5, rel=1e-5)
