"""Checks shared by the kernel tests: error against float64, with torch's own error beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from mindspeed_ms.kernels import backend

ISAS = ("portable", "avx2", "avx512")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

#: Half a unit in the last place, relative: what one correct rounding of the result may cost.
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@contextmanager
def isa(name: str) -> Iterator[None]:
    """Runs with one instruction set; skips the test where the CPU lacks it."""
    try:
        backend.force_isa(name)
    except ValueError as lacking:
        import pytest

        pytest.skip(str(lacking))
    try:
        yield
    finally:
        backend.force_isa("auto")


def relative_l2(value: torch.Tensor, exact: torch.Tensor) -> float:
    scale = exact.double().norm().item()
    return (value.double() - exact.double()).norm().item() / (scale or 1.0)


def assert_as_good_as_torch(
    ours: torch.Tensor, torchs: torch.Tensor, exact: torch.Tensor, what: str = "", slack: float = 1.1
) -> None:
    """Our relative L2 and maximum error against `exact` (float64) are no larger than torch's.

    The slack covers the scatter of roundings that differ (doubled for the maximum, an extreme of few values),
    and an error of three roundings of the result passes whatever torch reaches: on small inputs torch can be
    exact by luck.
    """
    assert ours.shape == exact.shape, f"{what}: shape {tuple(ours.shape)}, expected {tuple(exact.shape)}"
    assert ours.dtype == torchs.dtype, f"{what}: dtype {ours.dtype}, torch's is {torchs.dtype}"
    floor = ROUNDING[ours.dtype]
    mine, theirs = relative_l2(ours, exact), relative_l2(torchs, exact)
    assert mine <= max(slack * theirs, 3 * floor), f"{what}: relative L2 error {mine:.2e}, torch {theirs:.2e}"
    if exact.numel():
        mine = (ours.double() - exact).abs().max().item()
        theirs = (torchs.double() - exact).abs().max().item()
        limit = max(2 * slack * theirs, 4 * floor * exact.abs().max().item())
        assert mine <= limit, f"{what}: maximum error {mine:.3e}, torch's {theirs:.3e}"


def gradients(
    function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
    inputs: list[torch.Tensor],
    seeds: list[torch.Tensor],
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs and input gradients of `function` for output gradients `seeds`."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    outs = list(out) if isinstance(out, tuple) else [out]
    grads = torch.autograd.grad(outs, leaves, [s.to(o.dtype) for s, o in zip(seeds, outs, strict=True)])
    return [o.detach() for o in outs], list(grads)


def check_against_float64(
    ours: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
    composite: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
    inputs: list[torch.Tensor],
    seeds: list[torch.Tensor],
    slack: float = 1.1,
) -> None:
    """Outputs and gradients of `ours` against `composite` in float64, torch's error on `composite` beside."""
    got, got_grads = gradients(ours, inputs, seeds)
    torchs, torchs_grads = gradients(composite, inputs, seeds)
    exact, exact_grads = gradients(composite, [x.double() for x in inputs], [s.double() for s in seeds])
    for i, triple in enumerate(zip(got, torchs, exact, strict=True)):
        assert_as_good_as_torch(*triple, what=f"output {i}", slack=slack)
    for i, triple in enumerate(zip(got_grads, torchs_grads, exact_grads, strict=True)):
        assert_as_good_as_torch(*triple, what=f"gradient {i}", slack=slack)
