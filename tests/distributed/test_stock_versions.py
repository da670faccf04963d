"""The same stock pretrain_gpt.py at each supported tag of Megatron-LM, with the megatron-core of that tag.

Where the tags are looked for: see stock_script.checkout_of.
"""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.reference.stock_script import MODEL, checkout_of, deviation, train  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TAGS = ("core_v0.12.3", "core_v0.13.1", "core_v0.14.0", "core_v0.15.3", "core_v0.16.1")
# Before 0.16 mock data holds tokens up to 4095 whatever the vocabulary.
DATA = ["--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", "8191", "--num-layers", "2"]


@pytest.mark.parametrize("tag", TAGS)
def test_trains_as_on_the_host_route(tag, megatron_lm_path, tmp_path):
    checkout = checkout_of(tag, megatron_lm_path, tmp_path)
    if checkout is None:
        pytest.skip(f"neither beside {megatron_lm_path} nor in it is the tag {tag}")
    script = checkout / "pretrain_gpt.py"
    flags = [*MODEL, *DATA, "--train-iters", "3"]
    runs = [
        train(script, flags, tmp_path, way="run", timeout=200, MINDSPEED_MS_ROUTE=route)
        for route in ("auto", "host")
    ]
    for run in runs:
        assert not run.error, f"{run.error}\n{run.output[-6000:]}"
        assert len(run.losses) == 3
    assert deviation(*(run.losses for run in runs)) <= 1e-6
