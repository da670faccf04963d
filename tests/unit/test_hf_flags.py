"""Which values of ``--load`` mean a Hugging Face folder, and that nothing of it is loaded for others."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from mindspeed_ms.patches.megatron.hugging_face import fill_arguments, folder_of


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
