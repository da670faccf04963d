"""``mindspeed-ms plot`` and ``mindspeed-ms generate``."""

import argparse
from pathlib import Path

import mindspeed_ms.patch  # noqa: F401 - before torch.cuda is used
import pytest
import torch
from mindspeed_ms.commands import cli, generate, plot

LOG = """
 [2026-11-28 13:33:50.6] iteration        1/       3 | consumed samples:            4 | elapsed time per \
iteration (ms): 209.0 | learning rate: 6.666667E-04 | global batch size:     4 | lm loss: 4.890711E+00 | \
loss scale: 1.0 | grad norm: 1.295 | number of skipped iterations:   0 | number of nan iterations:   0 |
 [2026-11-28 13:33:50.7] iteration        2/       3 | consumed samples:            8 | elapsed time per \
iteration (ms): 115.3 | learning rate: 3.333333E-04 | global batch size:     4 | lm loss: 4.827662E+00 | \
loss scale: 1.0 | grad norm: 1.264 | number of skipped iterations:   0 | number of nan iterations:   0 |
 validation loss at iteration 2 | lm loss value: 4.700000E+00 | lm loss PPL: 1.099472E+02 |
"""
CURVES = {
    "lm loss": {1: 4.890711, 2: 4.827662},
    "grad norm": {1: 1.295, 2: 1.264},
    "validation": {2: 4.7},
}


def test_a_log_gives_its_curves() -> None:
    assert plot.read_log(LOG) == CURVES


def test_events_give_the_same(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path)
    tags = {"lm loss": "lm loss", "grad-norm": "grad norm", "lm loss validation": "validation"}
    for tag, name in tags.items():
        for iteration, value in CURVES[name].items():
            writer.add_scalar(tag, value, iteration)
    writer.close()
    found = plot.read_events(tmp_path)
    assert found.keys() == CURVES.keys()
    for name, curve in CURVES.items():
        assert found[name] == pytest.approx(curve, rel=1e-7)  # held in float32


def test_a_picture_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    log = tmp_path / "log.txt"
    log.write_text(LOG)
    assert cli.main(["plot", str(log)]) == 0
    assert "loss 4.8907 at iteration 1, 4.8277 at 2" in capsys.readouterr().out
    assert (tmp_path / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_what_cannot_be_plotted_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.txt").write_text("nothing of a trainer\n")
    assert cli.main(["plot", str(tmp_path / "other.txt")]) == 2
    assert cli.main(["plot", str(tmp_path / "none.txt")]) == 2
    said = capsys.readouterr().err
    assert "other.txt has no losses" in said
    assert "none.txt does not exist" in said


def successor(tokens: torch.Tensor, _positions: torch.Tensor, _mask: None) -> torch.Tensor:
    """Logits of a model for which the likeliest token is the next number; two further ones of padding win."""
    logits = torch.zeros(*tokens.shape, 12, device=tokens.device)
    logits.scatter_(-1, (tokens + 1).clamp(max=9).unsqueeze(-1), 5.0)
    logits[..., 10:] = 9.0
    return logits


def test_the_likeliest_token_follows_up_to_the_end() -> None:
    greedy = argparse.Namespace(top_k=1, temperature=1.0, seed=1)
    assert generate.sample(successor, [3, 4], 9, 20, greedy, 10) == [3, 4, 5, 6, 7, 8, 9]
    assert generate.sample(successor, [3, 4], 9, 4, greedy, 10) == [3, 4, 5, 6]


def test_a_draw_is_that_of_its_seed() -> None:
    hot = [argparse.Namespace(top_k=5, temperature=4.0, seed=seed) for seed in (1, 1, 2)]
    first, again, other = (generate.sample(successor, [0], 99, 30, options, 10) for options in hot)
    assert first == again
    assert first != other
    assert max(first) < 10  # padding of the vocabulary is never drawn


def test_a_folder_without_checkpoint_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "--load", str(tmp_path), "--prompt", "a"]) == 2
    assert "has no checkpoint" in capsys.readouterr().err


def test_what_a_log_holds_beside_its_curve_is_left_out():
    cut = " iteration       12/      20 | lm loss: 4.0E+"
    between = " iteration       11/      20 | lm loss: 4.1E[rank1]: warning | grad norm: 1.500 |"
    test = " validation loss at iteration 10 on test set | lm loss value: 9.9E+00 | lm loss PPL: 2.0E+04 |"
    sets = " validation-0 loss at iteration 10 | lm loss value: 4.7E+00 | lm loss PPL: 1.1E+02 |"
    whole = " iteration       10/      20 | lm loss: nan | grad norm: 1.250 |"
    curves = plot.read_log("\n".join((whole, sets, test, between, cut)))
    assert list(curves["lm loss"]) == [10]
    assert curves["grad norm"] == {10: 1.25, 11: 1.5}
    assert curves["validation"] == {10: 4.7}
