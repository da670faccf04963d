"""Route strict: whole training steps on MindSpore and csrc alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recipe_runs import LLAMA, losses, run, without_data

SHORT = ["--train-iters", "2", "--attention-dropout", "0", "--hidden-dropout", "0"]


@pytest.mark.parametrize("model", [[], LLAMA], ids=["gpt2", "llama with experts"])
def test_strict_trains_to_the_losses_of_plain_torch(
    model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*without_data(), *SHORT, *model, "--report-dir"]
    run([*flags, str(tmp_path / "plain")]).success()
    monkeypatch.setenv("MINDSPEED_MS_ROUTE", "strict")
    monkeypatch.setenv("MINDSPEED_MS_COVERAGE", str(tmp_path / "coverage.json"))
    run([*flags, str(tmp_path / "strict")], plain=False).success()
    strict, plain = losses(tmp_path / "strict"), losses(tmp_path / "plain")
    # MindSpore's exp is right to 5e-6 (fenced): it is in every softmax and in the loss.
    assert strict == [(iteration, pytest.approx(loss, rel=1e-5)) for iteration, loss in plain]
    rows = json.loads((tmp_path / "coverage.json").read_text())["rows"]
    assert ("aten::mm", "mindspore") in {(row["op"], row["route"]) for row in rows}


def test_strict_names_the_operator_that_has_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """MindSpore's CPU backend has no bfloat16 kernels to speak of."""
    monkeypatch.setenv("MINDSPEED_MS_ROUTE", "strict")
    text = run([*without_data(), *SHORT, "--bf16"], plain=False).error()
    assert text.startswith("MINDSPEED_MS_ROUTE=strict: aten::")
    assert "has neither a MindSpore nor a csrc kernel" in text
