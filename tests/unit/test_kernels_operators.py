"""Every kernel is an operator that torch's tools see whole: opcheck, torch.compile, profiler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mindspeed_ms.patch  # noqa: F401 - the device
import pytest
import torch
from mindspeed_ms import kernels, routes
from mindspeed_ms.kernels.operator import OPERATORS
from mindspeed_ms.kernels.samples import OF_A_GROUP, SAMPLES, Draw
from mindspeed_ms.routes import coverage, on_ascend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICES = ("cpu", "npu")
ROWS = [(name, number) for name, samples in SAMPLES.items() for number in range(len(samples))]
UTILS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")

pytestmark = pytest.mark.filterwarnings("ignore")


class Seen(TorchDispatchMode):
    """Keeps every call of an operator of ours, as tools of torch's dispatcher do."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "mindspeed_ms":
            self.calls.append((func, tree_map_only(torch.Tensor, lambda t: t.detach().clone(), args)))
        return func(*args, **(kwargs or {}))


def called(name: str, number: int, device: str) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The calls that a sample makes, forward and backward."""
    args = SAMPLES[name][number](Draw(device, torch.float32))
    with Seen() as seen:
        found = [t for t in tree_leaves(OPERATORS[name](*args)) if isinstance(t, torch.Tensor)]
        wanted = [t for t in tree_leaves(args) if isinstance(t, torch.Tensor) and t.requires_grad]
        outputs = [t for t in found if t.requires_grad]
        if outputs:
            torch.autograd.grad(outputs, wanted, [torch.ones_like(t) for t in outputs])
    yield from seen.calls


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "number"), ROWS)
def test_opcheck(name, number, device):
    torch.manual_seed(0)
    args = SAMPLES[name][number](Draw(device, torch.float32))
    differentiable = any(isinstance(t, torch.Tensor) and t.requires_grad for t in tree_leaves(args))
    # torch checks the registration of gradients for its own devices only.
    own = ("test_autograd_registration",) if device == "cpu" and differentiable else ()
    torch.library.opcheck(OPERATORS[name].overload, args, test_utils=(*UTILS, *own))
    calls = list(called(name, number, device))
    assert calls[0][0] is OPERATORS[name].overload
    for overload, given in calls[1:]:
        torch.library.opcheck(overload, given, test_utils=UTILS)


def test_every_operator_is_called_by_a_sample():
    seen = {overload._opname for name, number in ROWS for overload, _ in called(name, number, "cpu")}
    assert seen == set(OPERATORS) - OF_A_GROUP.keys()


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_leaves_the_scan_in_float32(device):
    torch.manual_seed(0)
    args = SAMPLES["state_space_scan"][0](Draw(device, torch.float32))
    expected = OPERATORS["state_space_scan"](*args)
    with torch.autocast(device, torch.bfloat16):
        found = OPERATORS["state_space_scan"](*args)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_torch_compile_holds_a_kernel_whole(device):
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def layer(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return kernels.bias_glu(kernels.rms_norm(x, weight)).sum()

    x, weight = torch.randn(4, 32).to(device).requires_grad_(), torch.ones(32).to(device).requires_grad_()
    found = torch.autograd.grad(torch.compile(layer, fullgraph=True, backend=backend)(x, weight), (x, weight))
    expected = torch.autograd.grad(layer(x, weight), (x, weight))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    ours = [node.target._opname for node in graphs[0].graph.nodes if "mindspeed_ms" in str(node.target)]
    assert ours == ["rms_norm", "bias_glu"]


def test_the_profiler_names_a_kernel():
    x = torch.randn(4, 32, device="npu", requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        kernels.rms_norm(x).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"mindspeed_ms::rms_norm", "mindspeed_ms::rms_norm_backward"} <= names


@pytest.mark.parametrize("name", SAMPLES)
def test_tensors_of_two_devices_are_refused(name):
    args = SAMPLES[name][0](Draw("npu", torch.float32))
    tensors = [t for t in tree_leaves(args) if isinstance(t, torch.Tensor)]
    for elsewhere in tensors if len(tensors) > 1 else ():
        mixed = tree_map_only(torch.Tensor, lambda t, e=elsewhere: t.detach().cpu() if t is e else t, args)
        with pytest.raises(RuntimeError, match=f"{name}: expected all tensors to be on the same device"):
            OPERATORS[name](*mixed)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(*shape, dtype=dtype, device="npu")


SCALARS = (1, 0.1, 0.9, 0.99, 1e-6, 0.1, True, True, False, 0.5)
ATTENTION = ("sbhd", 1.0, 0.0, -1, -1, None, None, 0, 0, False)
UNFIT = {
    "bias_activation": lambda: (ones(4, 8), ones(7), "silu"),
    "bias_glu": lambda: (ones(300, 8), None, ones(2, 1), "silu", 0.0, None),
    "rms_norm": lambda: (ones(4, 8), ones(6), None, None, 1e-5, False),
    "layer_norm": lambda: (ones(4, 8), ones(8), None, ones(4, 6), 1e-5, False),
    "bias_dropout_add": lambda: (ones(4, 8), None, ones(4, 8), ones(2, 8, dtype=torch.bool), 1.0),
    "embedding_grad": lambda: (ones(4, 8), ones(6, dtype=torch.int64), None, 10, -1),
    "embedding_grad_into": lambda: (ones(10, 6), ones(4, 8), ones(4, dtype=torch.int64), None, -1),
    "grouped_matmul": lambda: (ones(20, 8), [ones(8, 4), ones(8, 4096)], [4, 16], False),
    "scaled_softmax": lambda: (ones(2, 700), ones(2, 6, dtype=torch.bool), 1.0, False),
    "vocab_parallel_cross_entropy": lambda: (ones(4, 8), ones(4), 0.0, "", False),
    "linear_cross_entropy": lambda: (ones(4, 8), ones(16, 6), ones(4, dtype=torch.int64), "", 4),
    "gather_rows": lambda: (ones(4, 8), ones(4), None),
    "combine_rows": lambda: (ones(4, 8), ones(3, dtype=torch.int64), None, 4),
    "rope": lambda: (ones(6, 2, 2, 8), ones(4, 1, 1, 8), ones(4, 1, 1, 8), "half"),
    "topk_router": lambda: (ones(4, 8), ones(6), 0, 2, 0, 0, 1.0),
    "adam_step": lambda: ([ones(400)], [ones(3)], [ones(4)], [ones(4)], [], *SCALARS),
    "sgd_step": lambda: ([ones(400)], [ones(3)], [], [], 0.1, 0.0, 0.0, 0.0, False, False, False, 1.0),
    "multi_scale": lambda: ([ones(400)], [ones(3)], 1.0, False, False),
    "accumulate_weight_gradient": lambda: (ones(4, 8), ones(4, 6), ones(6, 7)),
    "attention": lambda: (ones(4, 1, 2, 8), ones(8, 1, 2, 8), ones(6, 1, 2, 8), None, *ATTENTION),
}
"""Arguments that do not fit each other: csrc would read or write beyond the end of one of them."""


@pytest.mark.parametrize("name", UNFIT)
def test_arguments_that_do_not_fit_are_refused(name):
    with pytest.raises(ValueError, match=r"fit|expected|must|differs|match|shapes|mask"):
        OPERATORS[name].overload(*UNFIT[name]())


@pytest.mark.parametrize("turned", [False, True])
def test_matrices_of_another_width_are_refused(turned):
    for matrices in (ones(2, 9, 4), ones(2, 4, 9), [ones(2, 8, 4), ones(2, 8, 4)]):
        with pytest.raises(ValueError, match="do not fit x"):
            kernels.grouped_matmul(ones(4, 8), matrices, [2, 2], turned=turned)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="rms_norm takes real floating tensors"):
        kernels.rms_norm(ones(2, 4, dtype=torch.int64))


def test_a_graph_is_not_captured_of_a_call_that_raises():
    with FakeTensorMode() as mode:
        x, weight = mode.from_tensor(torch.ones(2, 4)), mode.from_tensor(torch.ones(3))
        with pytest.raises(ValueError, match="weight has shape"):
            kernels.rms_norm(x, weight)
        with pytest.raises(RuntimeError, match="same device"):
            kernels.rms_norm(x, torch.empty(4, device="meta"))


def counted_as(route: str) -> list[tuple[str, str, str]]:
    """(operator, route, reason) of the kernel that a call of rms_norm is counted as on `route`."""
    coverage.reset()
    with routes.route(route):
        kernels.rms_norm(torch.randn(4, 32, device="npu"))
    rows = [row for row in coverage.snapshot() if row["op"].startswith("mindspeed_ms::")]
    return [(row["op"], row["route"], row["why"]) for row in rows]


@pytest.mark.skipif(on_ascend(), reason="csrc takes no memory of a device")
def test_every_form_is_counted_under_the_name_of_the_operator():
    name = "mindspeed_ms::rms_norm"
    assert counted_as("csrc") == [(name, "csrc", "")]
    assert counted_as("composite") == [(name, "composite", "route composite is forced")]
    why = "the MindSpore form of a fused kernel is for target Ascend"
    assert counted_as("mindspore") == [(name, "csrc", why)]
    coverage.reset()
    with routes.route("mindspore"):
        kernels.rms_norm(torch.randn(4, 32, device="npu", dtype=torch.float64))
    (row,) = [row for row in coverage.snapshot() if row["op"] == name]
    assert row["why"] == "dtype float64 has no csrc kernel on CPU"


def test_what_csrc_refuses_is_counted_as_composite_with_the_reason():
    halves = [torch.ones(4, device="npu", dtype=torch.bfloat16)]
    wide = [[torch.ones(4, device="npu")] for _ in range(3)]
    coverage.reset()
    kernels.adam_step(halves, *wide, step=1, lr=0.1)
    (row,) = [row for row in coverage.snapshot() if row["op"] == "mindspeed_ms::adam_step"]
    assert row["route"] == "composite"
    assert row["why"].startswith("refused: ")
