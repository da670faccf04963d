"""Group "kernels": every fused kernel, forward and backward, against its composite in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mindspeed_ms.commands.selftest.rows import FLOATS, GRADIENT, RESULT, Case, Check
from mindspeed_ms.kernels.operator import OPERATORS
from mindspeed_ms.kernels.samples import SAMPLES, Draw
from mindspeed_ms.routes import coverage
from torch.utils._pytree import tree_leaves, tree_map_only

Tensor = torch.Tensor


def tensors(values: Any) -> list[Tensor]:
    """The tensors in results or arguments, nested as they may be."""
    return [t for t in tree_leaves(values) if isinstance(t, Tensor)]


def exact(value: Tensor) -> Tensor:
    """On the host, floating numbers in float64."""
    host = value.detach().cpu()
    host = host.double() if host.is_floating_point() else host
    return host.requires_grad_(value.requires_grad)


def backward(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor | None]:
    """Gradients of `inputs` that want one, for outputs weighted by cosines of their places."""
    weights = [torch.cos(torch.arange(t.numel())).view(t.shape).to(t.device, t.dtype) for t in outputs]
    return list(torch.autograd.grad(outputs, inputs, weights, allow_unused=True))


def results(name: str, args: tuple[Any, ...]) -> tuple[list[Tensor], list[Tensor | None]]:
    """Differentiable results (all, of a kernel that has no gradient), and the gradients of the inputs."""
    found = tensors(OPERATORS[name](*args))
    if not found:  # it writes into its arguments
        return tensors(args), []
    outputs = [t for t in found if t.requires_grad]
    if not outputs:
        return found, []
    return outputs, backward(outputs, [t for t in tensors(args) if t.requires_grad])


def allowed(limits: dict[torch.dtype, float], dtype: torch.dtype, found: Tensor) -> float:
    """That of the coarser dtype, kernel or tensor; nothing of integers."""
    return max(limits.get(dtype, 0.0), limits.get(found.dtype, 0.0))


def compare(
    check: Check,
    dtype: torch.dtype,
    found: tuple[list[Tensor], list[Tensor | None]],
    expected: tuple[list[Tensor], list[Tensor | None]],
) -> None:
    """Results and gradients of a call in `dtype` against those in float64."""
    for number, (got, want) in enumerate(zip(found[0], expected[0], strict=True)):
        check.close(f"result {number}", got, want, allowed(RESULT, dtype, got))
    for number, (slope, wanted) in enumerate(zip(found[1], expected[1], strict=True)):
        check.require((slope is None) == (wanted is None), f"gradient {number} is there on one side only")
        if slope is not None and wanted is not None:
            check.close(f"gradient {number}", slope, wanted, allowed(GRADIENT, dtype, slope))


def routes(check: Check) -> set[str]:
    """The operators that MindSpore computed since the last reset; calls by route go into the counts."""
    rows = [row for row in coverage.snapshot() if row["why"] != "a tensor is empty"]
    for row in rows:
        name = f"{row['route']}_calls"
        check.counts[name] = check.counts.get(name, 0) + row["calls"]
    check.note = ", ".join(f"{row['op']} on the host: {row['why']}" for row in rows if row["route"] == "host")
    return {row["op"] for row in rows if row["route"] == "mindspore"}


def _case(name: str, number: int, dtype: torch.dtype) -> Case:
    def run(check: Check) -> None:
        torch.manual_seed(0)
        args = SAMPLES[name][number](Draw("npu", dtype))
        truth = tree_map_only(Tensor, exact, args)
        coverage.reset()
        found = results(name, args)
        torch.cuda.synchronize()
        routes(check)
        compare(check, dtype, found, results(name, truth))

    return Case(f"{name} {number} {str(dtype).removeprefix('torch.')}", run)


def cases(group: str) -> Iterator[Case]:
    """Every sample in every dtype."""
    for name, samples in SAMPLES.items():
        for number in range(len(samples)):
            for dtype in FLOATS:
                yield _case(name, number, dtype)
