"""The recipe as a whole, on plain torch: resume, SIGTERM, data, checkpoints, and every kind of bad input.

What the device computes is the business of other tests; these runs repeat exactly and start fast.
"""

import json
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest
from recipe_runs import (
    MODEL,
    PREPARE,
    PRETRAIN,
    ROOT,
    TIMEOUT_SECONDS,
    PlainRuns,
    command,
    environment,
    losses,
    run,
    without_data,
)

# Three iterations more than MODEL has, which change the schedule that the checkpoint holds.
LONGER = ("--train-iters", "9", "--override-opt_param-scheduler")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Runs scripts on plain torch."""
    runs = PlainRuns(tmp_path_factory.mktemp("runs"))
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def data(plain, tmp_path_factory) -> Path:
    """Data made by examples/prepare_data.py from a part of the standard library: json, email and logging."""
    folder = tmp_path_factory.mktemp("corpus")
    library = Path(json.__file__).parents[1]
    for package in ("json", "email", "logging"):
        shutil.copytree(library / package, folder / "sources" / package)
    flags = [
        "--output-dir",
        str(folder / "data"),
        "--vocab-size",
        "512",
        "--source-dir",
        str(folder / "sources"),
    ]
    assert "wrote" in plain(flags, script=PREPARE).success()
    # A second time there is nothing to do.
    assert "up to date" in plain(flags, script=PREPARE).success()
    return folder / "data"


def on(data: Path, *flags: str) -> list[str]:
    """Flags of a run on `data`."""
    tokenizer = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(data / "tokenizer")]
    return [*MODEL, "--data-path", str(data / "stdlib"), *tokenizer, *flags]


@pytest.fixture(scope="module")
def trained(plain, data, tmp_path_factory) -> Path:
    """--save folder of a run of 6 iterations with checkpoints at 3 and 6, its sample printed."""
    save = tmp_path_factory.mktemp("trained")
    text = plain(on(data, "--save", str(save), "--prompt", "def main(", "--prompt-tokens", "4")).success()
    assert "---- sample ----\ndef main(" in text
    assert text.count("| lm loss: ") == 6
    return save


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    """A copy of `trained` that a test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def test_tokenizer_files_of_both_kinds_agree(plain, data, trained, tmp_path):
    gpt2 = ["--tokenizer-type", "GPT2BPETokenizer", "--vocab-file", str(data / "tokenizer" / "vocab.json")]
    gpt2 += ["--merge-file", str(data / "tokenizer" / "merges.txt"), "--report-dir", str(tmp_path)]
    plain([*MODEL, "--data-path", str(data / "stdlib"), *gpt2]).success()
    assert losses(tmp_path) == losses(trained)


def test_loss_plot_is_a_picture(trained):
    assert (trained / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--use-distributed-optimizer", "--bf16", "--async-save"],
        pytest.param(["--fp16", "--initial-loss-scale", "1024"], marks=pytest.mark.slow),
        pytest.param(["--num-experts", "4", "--moe-router-topk", "2"], marks=pytest.mark.slow),
        pytest.param(["--dataloader-type", "cyclic"], marks=pytest.mark.slow),
    ],
    ids=["fp32", "bf16, distributed optimizer, saved in the background", "fp16", "moe", "cyclic"],
)
def test_resumed_run_repeats_the_uninterrupted_one(plain, data, trained, tmp_path, flags):
    # Dropout is on (0.1), so weights, moments, schedule, data and random generators must all come back.
    whole = trained
    if flags:
        whole = tmp_path / "whole"
        plain(on(data, "--save", str(whole), *flags)).success()
    resumed = tmp_path / "resumed"
    load = ["--load", str(whole), "--ckpt-step", "3", "--report-dir", str(resumed)]
    text = plain(on(data, *load, *flags)).success()
    assert "iteration        3/" not in text
    assert losses(resumed) == losses(whole)
    assert len(losses(resumed)) == 6


def test_sigterm_saves_and_ends(data, tmp_path):
    # More iterations than the time limit allows: only the signal can end this run.
    flags = on(data, "--save", str(tmp_path), "--train-iters", "100000", "--save-interval", "100000")
    process = subprocess.Popen(
        command(PRETRAIN, flags),
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        lines = []
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            lines.append(process.stdout.readline())
            if "lm loss" in lines[-1] or not lines[-1]:
                break
        process.send_signal(signal.SIGTERM)
        lines.append(process.communicate(timeout=TIMEOUT_SECONDS)[0])
    finally:
        process.kill()
    text = "".join(lines)
    assert process.returncode == 0, text[-2000:]
    assert "SIGTERM" in text
    saved = int((tmp_path / "latest_checkpointed_iteration.txt").read_text())
    assert len(losses(tmp_path)) == saved
    assert saved >= 1


def test_missing_data(plain, data, tmp_path):
    assert f"{tmp_path}/none.idx does not exist" in plain(on(data, "--data-path", f"{tmp_path}/none")).error()


@pytest.mark.parametrize("damage", ["other file", "cut", "other data"])
def test_wrong_index(plain, data, tmp_path, damage):
    for suffix in (".bin", ".idx"):
        shutil.copy(data / f"stdlib{suffix}", tmp_path / f"wrong{suffix}")
    index = tmp_path / "wrong.idx"
    if damage == "other file":
        index.write_bytes(b"not an index" * 100)
    elif damage == "cut":
        index.write_bytes(index.read_bytes()[:200])
    else:
        with (tmp_path / "wrong.bin").open("ab") as file:
            file.write(struct.pack("<H", 1))
    assert "wrong.idx" in plain(on(data, "--data-path", str(tmp_path / "wrong"))).error()


def test_sequence_longer_than_the_data(plain, data):
    long = ["--seq-length", "10000000", "--max-position-embeddings", "10000000"]
    text = plain(on(data, *long)).error()
    assert "fewer than one sequence of --seq-length 10000000" in text


def test_indivisible_heads(plain):
    text = plain([*without_data(), "--num-attention-heads", "5"]).error()
    assert text == "--hidden-size (64) must be a multiple of --num-attention-heads (5)"


def test_warmup_longer_than_the_run(plain):
    text = plain([*without_data(), "--lr-warmup-iters", "6"]).error()
    assert "warms up for 24 samples and decays until 24" in text


def test_nan_loss_stops_and_keeps_what_was_saved(plain, tmp_path):
    # The first update moves every weight by about 1e30: the second forward pass overflows.
    flags = [*without_data(), "--save", str(tmp_path), "--save-interval", "1", "--clip-grad", "0"]
    flags += ["--lr", "1e30", "--lr-decay-style", "constant"]
    text = plain(flags).error()
    assert "the loss of iteration 2 is nan" in text or "the loss of iteration 2 is inf" in text
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "1"
    assert "loaded checkpoint of iteration 1" in plain([*flags, "--load", str(tmp_path)]).out


def test_unwritable_save(plain, data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    text = plain(on(data, "--save", str(tmp_path / "file" / "checkpoints"))).error()
    assert "cannot be written" in text


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_corrupted_checkpoint_names_the_others(plain, copied, data, damage):
    file = next((copied / "iter_0000006").glob("*.distcp"))
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-100])
    else:
        file.unlink()
    text = plain(on(data, "--load", str(copied))).error()
    assert file.name in text
    assert "there are: 3" in text


def test_damaged_tracker_file(plain, copied, data):
    (copied / "latest_checkpointed_iteration.txt").write_text("six")
    assert "[3, 6]" in plain(on(data, "--load", str(copied))).error()


def test_another_schedule_names_the_flags(plain, trained, data):
    text = plain(on(data, "--load", str(trained), "--train-iters", "9")).error()
    assert "--override-opt_param-scheduler" in text


def test_checkpoint_of_another_model(plain, trained, data):
    text = plain(on(data, "--load", str(trained), "--hidden-size", "128")).error()
    assert "does not fit this run" in text


def test_interrupted_save_loses_nothing(plain, copied, data, tmp_path):
    # What a run killed in a save leaves: a folder under its temporary name, the tracker unchanged.
    part = copied / "iter_0000009.incomplete"
    part.mkdir()
    (part / "__0_0.distcp").write_bytes(b"half")
    flags = on(data, "--load", str(copied), "--save", str(copied), *LONGER)
    assert "loaded checkpoint of iteration 6" in plain(flags).success()
    assert (copied / "latest_checkpointed_iteration.txt").read_text() == "9"
    assert not part.exists()


def test_failed_save_keeps_the_previous_checkpoint(plain, copied, data):
    # A file where the folder of the new checkpoint must go makes the save itself fail.
    (copied / "iter_0000009.incomplete").write_text("in the way")
    flags = on(data, "--load", str(copied), "--save", str(copied), *LONGER)
    text = plain(flags).error()
    assert "could not be saved" in text
    assert "the newest one there is 6" in text
    (copied / "iter_0000009.incomplete").unlink()
    assert "loaded checkpoint of iteration 6" in plain(flags).success()


def test_old_checkpoints_go_when_told(plain, data, tmp_path):
    plain(on(data, "--save", str(tmp_path), "--save-interval", "1", "--save-retain-interval", "4")).success()
    assert sorted(p.name for p in tmp_path.glob("iter_*")) == ["iter_0000004", "iter_0000006"]


def test_evaluation_and_throughput_are_reported(plain, tmp_path):
    flags = ["--eval-interval", "3", "--eval-iters", "1", "--log-throughput", "--log-params-norm"]
    text = plain([*without_data(), *flags, "--tensorboard-dir", str(tmp_path)]).success()
    assert text.count("validation loss at iteration") == 2
    assert "test loss at iteration 6" in text
    assert "params norm" in text
    assert "TFLOP/s/GPU" in text
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_exit_interval(plain):
    text = plain([*without_data(), "--exit-interval", "2"]).success()
    assert "stopping after iteration 2: --exit-interval 2" in text


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
    first = float(run([], script=script, plain=False).success().split()[-1])
    # (0 - 3.5) / sqrt(variance of 0..7 + eps)
    assert first == pytest.approx(-3.5 / (5.25 + 1e-5) ** 0.5, rel=1e-5)


def test_script_error_is_not_hidden(plain, tmp_path):
    # Only errors that the user can mend lose their traceback.
    broken = tmp_path / "broken.py"
    broken.write_text("raise KeyError('a bug')\n")
    assert "Traceback" in plain([], script=broken).err
