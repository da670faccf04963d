"""A checkpoint saved under one parallel strategy continues under another: the loss goes on as it would have.

Megatron-Core keeps the state of the distributed optimizer and that of the plain one in different forms: both
strategies have the same kind.
"""

import pytest
import strategies
from strategies import MOCK, OPTIMIZER, STRATEGIES, TP2, Strategy, flags

from tests.reference.stock_script import AVERAGED

pytestmark = [pytest.mark.distributed, pytest.mark.usefixtures("pretrain")]

SAVED, END = 3, 7
RATE = f"--lr 1e-3 --min-lr 1e-4 --lr-decay-style cosine --lr-warmup-iters 1 --train-iters {END}"
TOLERANCE = 1e-6
SHARED = f"{OPTIMIZER} --dist-ckpt-optim-fully-reshardable"


def train(strategy, folder, *words):
    """Losses by iteration of a run."""
    return strategies.train(strategy, [*flags(strategy, MOCK), *RATE.split(), *words], folder)


def continues(before, after, folder, *saving):
    """Trains to the end under ``before``, then again from its middle under ``after``."""
    save = ["--save", str(folder / "saved"), "--save-interval", str(SAVED)]
    expected = train(before, folder, *save, *saving)
    # Random states belong to the ranks of a strategy; nothing here draws.
    load = ["--load", str(folder / "saved"), "--ckpt-step", str(SAVED), "--no-load-rng"]
    found = train(after, folder, *load)
    assert list(expected) == list(range(1, END + 1))
    assert list(found) == list(range(SAVED + 1, END + 1))
    for iteration in set(found) - {SAVED + AVERAGED}:
        assert found[iteration] == pytest.approx(expected[iteration], rel=TOLERANCE), iteration
    assert found[END] != pytest.approx(expected[SAVED], rel=100 * TOLERANCE)  # it did learn in between


def test_tensor_parallel_continues_as_pipeline(tmp_path):
    continues(STRATEGIES["TP2"], STRATEGIES["PP2"], tmp_path, "--async-save")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(Strategy(2, SHARED), Strategy(2, f"{TP2} {SHARED}"), id="DP2, shared optimizer -> TP2"),
        pytest.param(Strategy(1, SHARED), Strategy(2, SHARED), id="1 -> DP2, shared optimizer"),
        pytest.param(STRATEGIES["EP2"], Strategy(1, "", "experts"), id="EP2 -> 1"),
        pytest.param(STRATEGIES["PP2 + VPP"], STRATEGIES["CP2, ring"], id="PP2 with VPP -> CP2"),
    ],
)
def test_continues_under_another_strategy(before, after, tmp_path):
    continues(before, after, tmp_path)
