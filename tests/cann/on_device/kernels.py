"""Kernels where the target is Ascend: MindSpore's operators, forward and backward, against float64.

Run by tests/cann/test_kernels.py.

Every sample of tests/unit/kernel_samples.py in every dtype: the MindSpore form runs, unless the kernel
refuses it for a reason that stands below; then the composite does, in operators of MindSpore.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "unit"))

import mindspeed_ms.patch  # noqa: F401 - the device
from kernel_samples import SAMPLES, Draw
from mindspeed_ms import _runtime
from mindspeed_ms.kernels.operator import OPERATORS

#: Largest error relative to the largest value, forward and backward: a few roundings of the results.
ERROR = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (2e-2, 4e-2), torch.float16: (3e-3, 1e-2)}

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


def results(name: str, args: tuple[Any, ...]) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    """Differentiable results (all, of a kernel that has no gradient), and the gradients of the inputs."""
    found = [t for t in tree_leaves(OPERATORS[name](*args)) if isinstance(t, torch.Tensor)]
    if not found:  # it writes into its arguments
        return [t for t in tree_leaves(args) if isinstance(t, torch.Tensor)], []
    outputs = [t for t in found if t.requires_grad]
    if not outputs:
        return found, []
    wanted = [t for t in tree_leaves(args) if isinstance(t, torch.Tensor) and t.requires_grad]
    weights = [torch.cos(torch.arange(t.numel())).view(t.shape).to(t.device, t.dtype) for t in outputs]
    return outputs, list(torch.autograd.grad(outputs, wanted, weights, allow_unused=True))


def exact(value: torch.Tensor) -> torch.Tensor:
    """On the host, floating numbers in float64."""
    host = value.detach().cpu()
    host = host.double() if host.is_floating_point() else host
    return host.requires_grad_(value.requires_grad)


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, part: int) -> None:
    """`part` of ERROR: 0 for a result, 1 for a gradient; for the coarser dtype, kernel or tensor."""
    error = max(ERROR[dtype][part], ERROR.get(found.dtype, (0.0, 0.0))[part])
    assert found.shape == expected.shape
    expected, found = expected.detach().double(), found.detach().cpu().double()
    scale = max(expected.abs().max().item(), 1e-2) if expected.numel() else 1.0
    assert torch.isfinite(found).equal(torch.isfinite(expected))
    largest = (found - expected).nan_to_num(0.0).abs().max().item() if expected.numel() else 0.0
    assert largest <= error * scale, f"error {largest:.2e} of {scale:.2e}"


@pytest.mark.parametrize("dtype", list(ERROR), ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize(("name", "number"), ROWS)
def test_against_float64(name, number, dtype):
    torch.manual_seed(0)
    args = SAMPLES[name][number](Draw("npu", dtype))
    truth = tree_map_only(torch.Tensor, exact, args)
    _runtime.reset_coverage()
    outputs, grads = results(name, args)
    ran = {
        op.removeprefix("mindspeed_ms::")
        for op, _, route, *_ in _runtime.coverage_rows()
        if route == "mindspore"
    }
    expected, expected_grads = results(name, truth)
    for found, wanted in zip(outputs, expected, strict=True):
        close(found, wanted, dtype, 0)
    for found, wanted in zip(grads, expected_grads, strict=True):
        assert (found is None) == (wanted is None)
        if found is not None:
            close(found, wanted, dtype, 1)
    forms = {name, f"{name}_backward"} & set(OPERATORS) if grads else {name}
    if (name, number) in REFUSED or (dtype == torch.float32 and name in FLOAT32_REFUSED):
        assert not forms & ran, f"{name} takes it: take it out of the refused ones"
    elif OPERATORS[name].on_mindspore:
        assert forms <= ran, f"MindSpore's operators did not run: {sorted(ran)}"
