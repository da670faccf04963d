"""The same stock pretrain_gpt.py at each supported tag of Megatron-LM, with the megatron-core of that tag.

A tag is looked for beside the checkout that MEGATRON_LM_PATH names, as a folder of its name, then among the
checkout's own tags.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.reference.stock_script import MODEL, deviation, train  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TAGS = ("core_v0.12.3", "core_v0.13.1", "core_v0.14.0", "core_v0.15.3", "core_v0.16.1")
# Before 0.16 mock data holds tokens up to 4095 whatever the vocabulary.
DATA = ["--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", "8191", "--num-layers", "2"]


def checkout_of(tag: str, megatron_lm_path: Path, folder: Path) -> Path:
    """The files of ``tag``, unpacked in ``folder`` if they have no folder yet; skips where there are none."""
    beside = megatron_lm_path.resolve().parent / tag
    if beside.is_dir():
        return beside
    git = ["git", "-C", str(megatron_lm_path)]
    if subprocess.run([*git, "rev-parse", "-q", "--verify", tag], capture_output=True).returncode:
        pytest.skip(f"{beside} does not exist, and {megatron_lm_path} does not have the tag {tag}")
    tree = folder / "Megatron-LM"
    tree.mkdir()
    archive = subprocess.run([*git, "archive", tag], capture_output=True, check=True, timeout=60)
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True, timeout=60)
    return tree


@pytest.mark.parametrize("tag", TAGS)
def test_trains_as_on_the_host_route(tag, megatron_lm_path, tmp_path):
    script = checkout_of(tag, megatron_lm_path, tmp_path) / "pretrain_gpt.py"
    flags = [*MODEL, *DATA, "--train-iters", "3"]
    runs = [
        train(script, flags, tmp_path, way="run", timeout=200, MINDSPEED_MS_ROUTE=route)
        for route in ("auto", "host")
    ]
    for run in runs:
        assert not run.error, f"{run.error}\n{run.output[-6000:]}"
        assert len(run.losses) == 3
    assert deviation(*(run.losses for run in runs)) <= 1e-4
