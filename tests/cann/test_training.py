"""Training, generation and checkpoints on target Ascend: what plain torch gives, nothing on the host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .run import REPOSITORY

sys.path.insert(0, str(REPOSITORY))

from tests.reference.stock_script import MOCK, MODEL

PROGRAM = "tests/conformance/gpt_program.py"
LLAMA = (
    "--swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear --bf16 "
    "--group-query-attention --num-query-groups 2 --untie-embeddings-and-output-weights --train-iters 2 "
    "--use-distributed-optimizer --num-layers 2 --hidden-size 64 --seq-length 64 "
    "--max-position-embeddings 64 --global-batch-size 4 --vocab-size 127"
)
EXPERTS = "--num-experts 4 --moe-router-topk 2 --moe-permute-fusion --moe-grouped-gemm"
DROPOUT = "--attention-dropout 0.1 --hidden-dropout 0.1"
FORMS = {
    "rms_norm", "rope", "attention", "bias_glu", "bias_dropout_add", "vocab_parallel_cross_entropy",
    "accumulate_weight_gradient", "adam_step",
}  # fmt: skip
"""Fused kernels of a step of LLAMA."""
EXPERT_FORMS = FORMS - {"bias_glu"} | {"permute", "unpermute", "grouped_matmul"}
NO_COPIES = {"MS_DEV_DISABLE_AUTO_H2D": "1"}
"""MindSpore raises where an operator would have to copy one of its arguments to the device."""


@pytest.mark.parametrize("extra", [{}, NO_COPIES], ids=["as_is", "no_automatic_copies"])
def test_gpt_step_is_that_of_plain_torch(on_simulator, extra: dict[str, str], tmp_path: Path) -> None:
    ours, plain = tmp_path / "npu.json", tmp_path / "cpu.json"
    done = on_simulator(PROGRAM, str(ours), extra=extra)
    assert done.returncode == 0, done.stderr[-4000:]
    command = [sys.executable, "-m", "tests.reference.plain_torch", PROGRAM, str(plain)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=120)
    curve, expected = json.loads(ours.read_text()), json.loads(plain.read_text())
    assert expected[-1][0] < expected[0][0] - 0.1, "the reference must learn"
    for (loss, norm), (expected_loss, expected_norm) in zip(curve, expected, strict=True):
        assert loss == pytest.approx(expected_loss, rel=5e-6)
        assert norm == pytest.approx(expected_norm, rel=5e-6)


@pytest.mark.parametrize(
    ("flags", "forms", "extra"),
    [
        ("", FORMS, {}),
        (EXPERTS, EXPERT_FORMS, {}),
        (f"{EXPERTS} {DROPOUT}", EXPERT_FORMS, NO_COPIES),
    ],
    ids=["dense", "experts", "no_automatic_copies"],
)
def test_a_bf16_step_stays_on_the_device(
    on_simulator, pretrain: Path, flags: str, forms: set[str], extra: dict[str, str], tmp_path: Path
) -> None:
    report = tmp_path / "coverage.json"
    words = ["-m", "mindspeed_ms", "run", str(pretrain), *MODEL, *MOCK, *LLAMA.split(), *flags.split()]
    done = on_simulator(*words, extra={"MINDSPEED_MS_COVERAGE": str(report), **extra}, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(report.read_text())
    rows = found["rows"]
    crossed = {cause for cause, row in found["bus"].items() if row["to_device_bytes"] or row["to_host_bytes"]}
    assert crossed == {"aten::copy_", "aten::_local_scalar_dense"}, "data in, numbers that are read"
    computing = [row for row in rows if row["why"] != "a tensor is empty"]  # the host makes the empty result
    assert [row for row in computing if row["route"] == "host"] == []
    ours = {row["op"].removeprefix("mindspeed_ms::") for row in rows if row["route"] == "mindspore"}
    assert forms <= ours


def ours_and_plain(on_simulator, what: str, folder: Path) -> tuple[dict, dict, list[str]]:
    """What the program gives on the simulator and in plain torch, and its host calls."""
    program, report = "tests/conformance/inference_program.py", folder / "coverage.json"
    files = [folder / "npu.json", folder / "cpu.json"]
    extra = {"MINDSPEED_MS_COVERAGE": str(report), **NO_COPIES}
    done = on_simulator(program, what, str(files[0]), extra=extra)
    assert done.returncode == 0, done.stderr[-4000:]
    command = [sys.executable, "-m", "tests.reference.plain_torch", program, what, str(files[1])]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=120)
    ours, plain = (json.loads(file.read_text()) for file in files)
    rows = json.loads(report.read_text())["rows"]
    return ours, plain, [row["op"] for row in rows if row["route"] == "host"]


def test_generation_is_that_of_plain_torch_and_stays_on_the_device(on_simulator, tmp_path: Path) -> None:
    ours, plain, host = ours_and_plain(on_simulator, "generate", tmp_path)
    assert host == []
    assert ours["greedy"] == plain["greedy"]
    for row, expected in zip(ours["log_probabilities"], plain["log_probabilities"], strict=True):
        assert row == pytest.approx(expected, abs=2e-6)
    first, again = ours["drawn"]
    assert first == again, "one seed, one text"
    assert first != ours["greedy"]
    assert all(0 <= token < 96 for row in ours["top_k"] for token in row)


@pytest.mark.parametrize("form", ["torch_dist", "legacy"])
def test_a_checkpoint_comes_back_without_the_host(on_simulator, form: str, tmp_path: Path) -> None:
    ours, plain, host = ours_and_plain(on_simulator, form, tmp_path)
    assert host == []
    assert ours["saved"] == pytest.approx(plain["saved"], abs=1e-6)
    assert ours["loaded"] == ours["saved"] != ours["other"]


@pytest.mark.slow
@pytest.mark.distributed
def test_stock_scripts_train_as_plain_torch(megatron_lm_path: Path) -> None:
    """The short form of the benchmark: float32, bfloat16 with asynchronous streams, TP 2 + SP."""
    command = [sys.executable, "-m", "tests.benchmarks.ascend_parity", "--quick"]
    command += ["--megatron-lm-path", str(megatron_lm_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
