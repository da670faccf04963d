"""Hugging Face folders into models of every layout and out again, and what is said of wrong ones."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import hugging_face
import pytest
import ranks
import torch

pytestmark = pytest.mark.distributed

TP2, PP2, EP2 = {"tensor": 2}, {"pipeline": 2}, {"expert": 2}


def source(folder: Path, name: str) -> Path:
    config = hugging_face.CONFIGS[name]
    return hugging_face.write(folder / name, config, hugging_face.tensors(config))


@pytest.mark.parametrize(
    ("name", "world", "layout", "mtp"),
    [
        ("qwen2", 2, TP2, 0),
        ("qwen2", 2, PP2, 0),
        ("qwen3_moe", 2, EP2, 0),
        ("qwen3_moe", 2, {"tensor": 2, "expert_tensor": 2}, 0),
        ("qwen3_moe", 2, {"pipeline": 2, "virtual": 2}, 0),
        ("deepseek_v3", 2, TP2, 1),
        ("deepseek_v3", 2, PP2, 1),
        ("deepseek_v3", 2, EP2, 0),
    ],
)
def test_a_folder_comes_out_as_it_went_in(name, world, layout, mtp, tmp_path):
    folder, out = source(tmp_path, name), tmp_path / "out"
    read = ranks.run(hugging_face.round_trip, world, folder, out, layout, mtp)
    before, after = hugging_face.read(folder), hugging_face.read(out)
    assert before.keys() == after.keys()
    assert not [key for key in before if not torch.equal(before[key], after[key])]
    for file in ("config.json", "generation_config.json"):
        assert (folder / file).read_bytes() == (out / file).read_bytes()
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=out, check=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [*sorted([name, "out"])]
    whole = sum(t.numel() * 4 for t in before.values())
    assert max(read) < 0.8 * whole  # a rank reads its share, and what all have


def test_each_fault_of_a_folder_is_one_sentence_on_all_ranks(tmp_path):
    whole = source(tmp_path, "qwen2")
    config = hugging_face.CONFIGS["qwen2"]
    weights = hugging_face.tensors(config)
    shard = "model-00001-of-00002.safetensors"
    faults: dict[str, tuple[str, str]] = {
        "key missing": (
            "WeightsError",
            "lacks model.layers.2.mlp.up_proj.weight, which decoder.layers.2.mlp.linear_fc1.weight",
        ),
        "key too many": ("WeightsError", "holds model.layers.9.extra, for which the model has no parameter"),
        "other shape": (
            "WeightsError",
            "model.norm.weight of {} has shape [31], and decoder.final_layernorm.weight needs [32]",
        ),
        "shard missing": ("WeightsError", "model-00001-of-00002.safetensors is missing"),
        "shard short": ("WeightsError", "is too short"),
        "header damaged": ("WeightsError", "is no whole safetensors file"),
        "index wrong": ("WeightsError", "disagree on lm_head.weight"),
        "other config": ("WeightsError", "has 32 rows where config.json makes 24: check the flags"),
        "no model": ("ConfigError", "has no config.json"),
        "pickled": ("WeightsError", "only pytorch_model.bin, which this does not read"),
        "unknown": ("UnsupportedModelError", "is of a perceiver model, which is not known here"),
    }
    folders = {name: shutil.copytree(whole, tmp_path / name) for name in faults}
    lacking = {key: t for key, t in weights.items() if key != "model.layers.2.mlp.up_proj.weight"}
    hugging_face.write(folders["key missing"], config, lacking)
    hugging_face.write(folders["key too many"], config, weights | {"model.layers.9.extra": torch.ones(3)})
    hugging_face.write(folders["other shape"], config, weights | {"model.norm.weight": torch.ones(31)})
    (folders["shard missing"] / shard).unlink()
    os.truncate(folders["shard short"] / shard, (whole / shard).stat().st_size - 5)
    with (folders["header damaged"] / shard).open("r+b") as opened:
        opened.write(b"\xff" * 12)
    index = folders["index wrong"] / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    listed["weight_map"]["lm_head.weight"] = shard
    index.write_text(json.dumps(listed))
    for name, change in (
        ("other config", {"num_key_value_heads": 1}),
        ("unknown", {"model_type": "perceiver"}),
    ):
        (folders[name] / "config.json").write_text(json.dumps(config | change))
    (folders["no model"] / "config.json").unlink()
    for file in folders["pickled"].glob("model*"):
        file.unlink()
    (folders["pickled"] / "pytorch_model.bin").write_bytes(b"")

    said = ranks.run(hugging_face.errors, 2, [whole, *folders.values()], tmp_path)
    assert said[0] == said[1]
    for (name, (kind, text)), (raised, message) in zip(faults.items(), said[0], strict=True):
        assert raised == kind, f"{name}: {raised} {message}"
        assert text.format(folders[name]) in message
        assert "\n" not in message


def test_a_killed_export_leaves_nothing_that_looks_whole(tmp_path):
    folder, out = source(tmp_path, "qwen3_moe"), tmp_path / "out"
    store, results = ranks.free_store(), multiprocessing.get_context("spawn").Queue()
    (process,) = ranks.start(hugging_face.save_for_ever, 1, store.port, results, folder, out)
    try:
        deadline = time.monotonic() + 60
        while not (out / "2").exists() or not list(
            out.glob(".*.partial")
        ):  # until it is in the middle of one
            assert process.is_alive()
            assert time.monotonic() < deadline
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    left = sorted(out.iterdir())
    whole = [path for path in left if not path.name.startswith(".")]
    assert len(whole) >= 3
    for path in whole:
        subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=path, check=True)
        assert hugging_face.read(path).keys() == hugging_face.read(folder).keys()


FULL = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:2]
import hugging_face
import torch.distributed as dist
hugging_face.start(0, 1, dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), {})
from mindspeed_ms import hf
folder = Path(sys.argv[2])
chunks = hugging_face.model(folder, {})
hf.load(chunks, folder)
try:
    hf.save(chunks, folder, Path(sys.argv[3]) / "out")
except OSError as error:
    print(error)
"""


def test_a_full_disk_is_one_sentence(tmp_path):
    folder, small = source(tmp_path, "qwen3_moe"), tmp_path / "small"
    small.mkdir()
    own = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mounted = f"mount -t tmpfs -o size=100k none {small}"
    if subprocess.run([*own, mounted], capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    program = [sys.executable, "-c", FULL, str(Path(__file__).parent), str(folder), str(small)]
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in program)
    done = subprocess.run(
        [*own, f"{mounted} && {quoted} && ls -A {small}"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.strip().splitlines()
    assert said[-1:] == [f"[Errno 28] 0.00 GB do not fit on the disk of {small}: nothing was written"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2", "qwen3_moe"])
def test_converted_there_and_back(name, megatron_lm_path, tmp_path):
    folder = source(tmp_path, name)
    there, back = tmp_path / "there", tmp_path / "back"
    convert = [sys.executable, "-m", "mindspeed_ms", "convert", "--megatron-lm-path", str(megatron_lm_path)]
    subprocess.run([*convert, f"hf:{folder}", str(there)], check=True, timeout=300)
    assert (there / "latest_checkpointed_iteration.txt").read_text() == "release"
    subprocess.run([*convert, str(there), f"hf:{back}", "--model", str(folder)], check=True, timeout=300)
    before, after = hugging_face.read(folder), hugging_face.read(back)
    assert before.keys() == after.keys()
    assert not [key for key in before if not torch.equal(before[key], after[key])]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "there", "back"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["one", "other"], "one of one and other has to be hf:DIR"),
        (["one", "hf:other"], "hf:other needs --model DIR"),
        (["hf:one", "other", "--megatron-lm-path", "nowhere"], "nowhere/pretrain_gpt.py does not exist"),
    ],
)
def test_what_cannot_be_converted_is_one_sentence(words, said, tmp_path):
    command = [sys.executable, "-m", "mindspeed_ms", "convert", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"mindspeed-ms convert: {said}")
    assert done.stderr.count("\n") == 1
