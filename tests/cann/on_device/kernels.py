"""Kernels where the target is Ascend: MindSpore's operators, forward and backward, against float64.

Run by tests/cann/test_kernels.py.

Every sample of mindspeed_ms.kernels.samples in every dtype: the MindSpore form runs, unless the kernel
refuses it for a reason that stands below; then the composite does, in operators of MindSpore.
"""

from __future__ import annotations

import mindspeed_ms.patch  # noqa: F401 - the device
import pytest
import torch
from mindspeed_ms import kernels as public
from mindspeed_ms.commands.selftest import kernels
from mindspeed_ms.commands.selftest.rows import FLOATS, Check
from mindspeed_ms.kernels.operator import OPERATORS
from mindspeed_ms.kernels.samples import SAMPLES, Draw
from mindspeed_ms.routes import coverage
from torch.utils._pytree import tree_map_only

from tests.cann import counters

REFUSED: dict[tuple[str, int], str] = {
    ("adam_step", 1): "AdamW's decay is decoupled",
    ("attention", 7): "no window over packed sequences",
    ("attention", 8): "no soft cap, no gradient of the log-sum-exp",
    ("vocab_parallel_cross_entropy", 1): "labels are smoothed in another way than Megatron's",
}
"""Sample -> why MindSpore's operators do not take it: the composite runs."""

FLOAT32_REFUSED: dict[str, str] = {
    "attention": "it takes 16-bit types",
    "ring_step": "it takes 16-bit types",
    "ring_step_backward": "it takes 16-bit types",
    "grouped_matmul": "grouped_matmul's gradient takes 16-bit types",
}
"""Kernel -> why they do not take float32."""

ROWS = [(name, number) for name, samples in SAMPLES.items() for number in range(len(samples))]


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize(("name", "number"), ROWS)
def test_against_float64(name, number, dtype):
    torch.manual_seed(0)
    args = SAMPLES[name][number](Draw("npu", dtype))
    truth = tree_map_only(torch.Tensor, kernels.exact, args)
    coverage.reset()
    found, check = kernels.results(name, args), Check()
    ran = {op.removeprefix("mindspeed_ms::") for op in kernels.routes(check)}
    kernels.compare(check, dtype, found, kernels.results(name, truth))
    assert not check.wrong
    forms = {name, f"{name}_backward"} & set(OPERATORS) if found[1] else {name}
    if (name, number) in REFUSED or (dtype == torch.float32 and name in FLOAT32_REFUSED):
        assert not forms & ran, f"{name} takes it: take it out of the refused ones"
    elif OPERATORS[name].on_mindspore:
        assert forms <= ran, f"MindSpore's operators did not run: {sorted(ran)}"


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "topk_router", "scaled_softmax"])
def test_nothing_to_compute(name):
    """MindSpore's operators raise for tensors without elements: the composite runs, which says why."""
    calls = {
        "rms_norm": lambda x: public.rms_norm(x, torch.ones(24, device="npu")),
        "layer_norm": lambda x: public.layer_norm(x, *torch.ones(2, 24, device="npu")),
        "topk_router": lambda x: public.topk_router(x, 2)[0],
        "scaled_softmax": public.scaled_softmax,
    }
    x = torch.empty(0, 24, device="npu", requires_grad=True)
    coverage.reset()
    result = calls[name](x)
    result.sum().backward()
    assert not len(result)
    assert x.grad.shape == x.shape
    rows = [row for row in coverage.report()["rows"] if row["op"].startswith("mindspeed_ms::")]
    assert {row["route"] for row in rows} == {"composite"}
    assert {row["why"] for row in rows} == {"refused: a tensor has no elements"}


def test_clipping_is_one_launch_a_gradient_and_waits_for_nothing():
    hosts = [torch.randn(3, 4), torch.randn(5, dtype=torch.half)]
    grads = [host.npu() for host in hosts]
    torch.cuda.synchronize()
    counters.reset()
    public.scale_into(grads, grads, 0.25)
    seen = counters.read()
    assert seen["launches"] == {"aclnnInplaceMuls": 2}
    assert seen["stream_syncs"] == seen["device_syncs"] == seen["event_syncs"] == 0
    for grad, host in zip(grads, hosts, strict=True):
        assert grad.cpu().equal(host * 0.25)
    counters.reset()
    norm = public.norm_of(grads)
    assert counters.read()["stream_syncs"] == 0
    exact = torch.cat([host.double().flatten() * 0.25 for host in hosts]).norm().item()
    assert norm.item() == pytest.approx(exact, rel=1e-6)


def test_norms_of_float64():
    x, y = torch.tensor([1e30, 0.0]), torch.tensor([3.0, 4.0])
    tensors = [t.to("npu", torch.float64) for t in (x, y)]
    assert public.multi_scale(tensors, 1e30, want_norms=True) == (False, pytest.approx([1e60, 5e30]))
    assert public.multi_scale([*tensors, y.npu()], 2.0, want_norms=True)[1] == pytest.approx(
        [2e30, 10.0, 10.0]
    )
    assert public.l2_norm([tensors[1]]) == pytest.approx(5.0)


@pytest.mark.parametrize(("rows", "inner", "columns"), [(1, 16, 16), (6, 1, 4), (6, 4, 1)])
@pytest.mark.parametrize("turned", [False, True])
def test_grouped_matmul_of_one_row_or_column(rows, inner, columns, turned):
    """A gradient whose transposed matrix CANN cannot tell from another: the numbers are those of float64."""
    torch.manual_seed(0)
    x = torch.randn(rows, inner).bfloat16()
    weights = torch.randn(2, *((columns, inner) if turned else (inner, columns))).bfloat16()
    counts = [rows - rows // 2, rows // 2]
    args = (x.npu().requires_grad_(), [w.npu().requires_grad_() for w in weights], counts, turned)
    truth = tree_map_only(torch.Tensor, kernels.exact, args)
    check = Check()
    found, expected = (kernels.results("grouped_matmul", each) for each in (args, truth))
    kernels.compare(check, torch.bfloat16, found, expected)
    assert not check.wrong


def test_attention_of_no_sequences():
    """All rows are padding: MindSpore ends the process for lengths that are an empty list."""
    x = torch.ones(2, 1, 16, device="npu", dtype=torch.bfloat16, requires_grad=True)
    result = public.attention(x, x, x, segments=())
    result.sum().backward()
    assert not result.any()
    assert not x.grad.any()
