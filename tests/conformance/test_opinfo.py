"""The fast share of torch's operator database, and that the runner sees what goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import mindspeed_ms.patch  # noqa: F401
import pytest
import torch

from . import exceptions, pool
from .comparison import Outcome, compare

# What a GPT, its loss and its optimizer are made of, and one of every family that goes its own way.
OPERATORS = (
    *("add", "sub", "mul", "div.no_rounding_mode", "pow", "exp", "log", "sqrt", "rsqrt", "reciprocal"),
    *("neg", "abs", "clamp", "where", "lerp", "addcmul", "addcdiv", "maximum", "eq", "lt", "logical_not"),
    *("isnan", "mm", "bmm", "addmm", "baddbmm", "matmul", "nn.functional.linear", "einsum", "outer"),
    *("sum", "mean", "amax", "argmax", "var", "cumsum", "any", "linalg.vector_norm", "softmax"),
    *("log_softmax", "logsumexp", "nn.functional.gelu", "nn.functional.silu", "nn.functional.relu"),
    *("sigmoid", "tanh", "native_layer_norm", "nn.functional.layer_norm", "nn.functional.rms_norm"),
    *("nn.functional.embedding", "nn.functional.dropout", "nn.functional.cross_entropy"),
    *("nn.functional.scaled_dot_product_attention", "nn.functional.conv2d", "cat", "stack", "split"),
    *("chunk", "unbind", "transpose", "permute", "expand", "view", "reshape", "unfold", "as_strided"),
    *("index_select", "gather", "scatter_add", "index_put", "masked_fill", "index_add", "tril", "sort"),
    *("topk", "unique", "nonzero", "bincount", "arange", "full_like", "zeros_like", "empty_like", "to"),
    *("clone", "contiguous", "bernoulli", "normal", "multinomial", "fft.rfft", "linalg.qr"),
    *("view_as_complex", "resize_", "fill", "copysign", "float", "bfloat16", "bool", "repeat_interleave"),
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("opinfo") / "report.json"
    names = "|".join(name.replace(".", r"\.") for name in OPERATORS)
    command = [sys.executable, "-m", "tests.conformance.opinfo", "--samples", "3", "--ops", names]
    done = subprocess.run(
        [*command, "--json", str(file)], capture_output=True, text=True, cwd=pool.ROOT, timeout=280
    )
    assert file.exists(), done.stdout + done.stderr
    return {**json.loads(file.read_text()), "status": done.returncode}


def test_every_failure_is_a_known_one(report: dict[str, Any]) -> None:
    assert report["problems"] == []
    assert report["status"] == 0


def test_every_operator_was_checked(report: dict[str, Any]) -> None:
    passed = {row["op"] for row in report["rows"] if row["passed"]}
    assert passed == {row["op"] for row in report["rows"]}
    assert len(passed) > 90
    assert {row["variant"] for row in report["rows"]} == {"forward", "backward", "inplace", "out"}
    assert {row["dtype"] for row in report["rows"]} == {"float32", "bfloat16", "int64", "bool"}


def task(op: str, variants: tuple[str, ...] = ("forward",)) -> dict[str, Any]:
    return {"op": op, "dtype": "float32", "variants": list(variants), "samples": 1, "route": "auto"}


def test_lost_worker_is_a_result() -> None:
    rows = list(pool.run([task("no_such_operator"), task("neg", ("forward", "inplace"))], 1, 120))
    assert [(row["op"], row["result"]) for row in rows] == [
        ("no_such_operator", "crash"),
        ("neg", "pass"),
        ("neg", "pass"),
    ]


def test_silent_worker_is_a_result() -> None:
    (row,) = pool.run([task("neg")], 1, 1e-6)
    assert (row["result"], row["failed"]) == ("timeout", 1)


def outcome(device: str, **changes: Any) -> Outcome:
    fields = {"results": (torch.ones(3).to(device),), "arguments": [], "versions": [0], "shared": []}
    return Outcome(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"results": (torch.tensor([1.0, 1.0, 1.001]).npu(),)}, "not close"),
        ({"results": (torch.ones(3),)}, "on cpu"),
        ({"results": (torch.ones(3, device="npu").double(),)}, "dtype"),
        ({"results": (torch.ones(1, 3, device="npu"),)}, "shape"),
        ({"results": torch.ones(3, device="npu")}, "structure"),
        ({"arguments": [torch.zeros(1, device="npu")]}, "zip"),
        ({"versions": [1]}, "version counters"),
        ({"shared": [(0, 0, (1,), 0)]}, "shared with"),
    ],
    ids=["value", "device", "dtype", "shape", "structure", "argument", "version", "sharing"],
)
def test_comparison_sees(changes: dict[str, Any], finding: str) -> None:
    compare(outcome("npu"), outcome("cpu"))
    with pytest.raises((AssertionError, ValueError), match=finding):
        compare(outcome("npu", **changes), outcome("cpu"))


def test_exceptions_say_why() -> None:
    for known in exceptions.EXCEPTIONS:
        assert len(known.reason.split()) >= 5, f"{known.op}: a reason is a sentence"
    assert exceptions.excuse("add", "float32", "forward", "Tensor-likes are not close!") is None
