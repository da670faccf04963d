"""Which values of ``--load`` mean a Hugging Face folder, and that nothing of it is loaded for others."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from mindspeed_ms.patches.megatron.hugging_face import fill_arguments, folder_of, model_of


def test_a_folder_is_known_by_its_prefix_or_its_files(tmp_path: Path) -> None:
    assert folder_of(None) is None
    assert folder_of("hf:somewhere/model") == Path("somewhere/model")
    assert folder_of(str(tmp_path)) is None
    (tmp_path / "config.json").write_text("{}")
    assert folder_of(str(tmp_path)) == tmp_path
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("5")
    assert folder_of(str(tmp_path)) is None


def test_weights_go_out_only_with_a_folder_they_come_from() -> None:
    args = argparse.Namespace(load=None, save="hf:out", pretrained_checkpoint=None)
    with pytest.raises(ValueError, match="--save hf:out takes config"):
        fill_arguments(args)


def test_a_run_without_a_folder_loads_nothing_of_it(tmp_path: Path) -> None:
    program = (
        "import argparse, sys, mindspeed_ms.patch\n"
        "from mindspeed_ms.patches.megatron.hugging_face import fill_arguments\n"
        f"args = argparse.Namespace(load={str(tmp_path)!r}, save='ckpt', pretrained_checkpoint=None)\n"
        "fill_arguments(args)\n"
        "print(*[name for name in sys.modules if name.split('.')[:2] == ['mindspeed_ms', 'hf']\n"
        "        or name.split('.')[0] in ('transformers', 'safetensors', 'mcore_bridge')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == []


LLAMA = {
    **{"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "vocab_size": 131, "max_position_embeddings": 64, "rms_norm_eps": 1e-5},
}


def filled(folder: Path, more: dict[str, object], *words: str) -> argparse.Namespace:
    """Megatron's args for a config.json, and these words on the command line."""
    arguments = pytest.importorskip(
        "megatron.training.arguments", reason="Megatron's trainer is not installed"
    )
    from mindspeed_ms.hf.flags import fill

    (folder / "config.json").write_text(json.dumps({**LLAMA, **more}))
    parser = arguments.add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    words = ("--tokenizer-type", "NullTokenizer", *words)
    args = parser.parse_args(words)
    fill(args, folder, words)
    return args


@pytest.mark.parametrize(
    "words",
    [
        *("--apply-layernorm-1p", "--window-size 4,0", "--rotary-interleaved", "--no-rope-freq 2"),
        *(
            "--use-rope-scaling",
            "--moe-router-topk-scaling-factor 2.5",
            "--qk-layernorm",
            "--vocab-size 5000",
        ),
    ],
)
def test_a_flag_for_what_the_model_does_not_have_contradicts_it(tmp_path: Path, words: str) -> None:
    with pytest.raises(ValueError, match=f"{words.split()[0]}.* contradicts .* in .*config.json"):
        filled(tmp_path, {}, *words.split())
    filled(tmp_path, {})


def test_rotary_embeddings_are_scaled_as_config_json_says(tmp_path: Path) -> None:
    linear = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}
    assert filled(tmp_path, {"rope_scaling": linear}).rotary_seq_len_interpolation_factor == 2.5
    llama3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    whole = {**llama3, "original_max_position_embeddings": 8192}
    args = filled(tmp_path, {"rope_scaling": whole})
    assert (args.use_rope_scaling, args.rope_scaling_factor) == (True, 32.0)
    with pytest.raises(ValueError, match="no original_max_position_embeddings for its rope_type llama3"):
        filled(tmp_path, {"rope_scaling": llama3})
    with pytest.raises(NotImplementedError, match="rope_scaling 'linear'"):
        filled(tmp_path, {"rope_scaling": "linear"})


def test_a_folder_with_weights_keeps_its_model_when_checkpoints_are_saved_to_it(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "latest_checkpointed_iteration.txt"):
        (tmp_path / name).write_text("{}")
    assert folder_of(str(tmp_path)) is None, "the checkpoint is loaded"
    assert model_of(str(tmp_path)) == tmp_path, "and the flags are the model's"
    (tmp_path / "model.safetensors").unlink()
    assert model_of(str(tmp_path)) is None
