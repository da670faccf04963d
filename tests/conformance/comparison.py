"""What it means that an operator did on npu what it does on CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_flatten

DEVICE = "npu"

# The contents of fresh memory are no result; shape, dtype and strides are.
UNDEFINED_VALUES = frozenset(
    ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
)


@dataclass
class Outcome:
    """What a program leaves behind."""

    results: Any
    arguments: list[torch.Tensor]
    versions: list[int]
    shared: list[tuple]


def compare(actual: Outcome | None, expected: Outcome, values: bool = True) -> None:
    """Raises AssertionError where npu did not what CPU did; `values` False: contents may differ.

    Tolerances are torch.testing's defaults for the dtype (float32: rtol 1.3e-6, atol 1e-5).
    """
    assert actual is not None, "no result, but CPU has one"
    _compare_trees(actual.results, expected.results, values, "result")
    for number, (a, e) in enumerate(zip(actual.arguments, expected.arguments, strict=True)):
        _compare_leaf(a, e, values, f"argument {number} after the call")
    assert actual.versions == expected.versions, (
        f"version counters advanced by {actual.versions}, on CPU by {expected.versions}"
    )
    assert actual.shared == expected.shared, (
        f"(result, shared with, strides, offset) is {actual.shared}, on CPU {expected.shared}"
    )


def _compare_trees(actual: Any, expected: Any, values: bool, what: str) -> None:
    actual_leaves, actual_spec = tree_flatten(actual)
    expected_leaves, expected_spec = tree_flatten(expected)
    assert actual_spec == expected_spec, f"{what}: structure {actual_spec} instead of {expected_spec}"
    for number, (a, e) in enumerate(zip(actual_leaves, expected_leaves, strict=True)):
        _compare_leaf(a, e, values, f"{what} {number}")


def _compare_leaf(actual: Any, expected: Any, values: bool, what: str) -> None:
    if not isinstance(expected, torch.Tensor):
        if isinstance(expected, (int, float, complex)):
            torch.testing.assert_close(actual, expected, equal_nan=True, msg=lambda m: f"{what}: {m}")
        elif not isinstance(expected, torch.device):
            assert actual == expected, f"{what}: {actual!r} instead of {expected!r}"
        return
    assert isinstance(actual, torch.Tensor), f"{what}: {type(actual).__name__} instead of a tensor"
    assert actual.device.type == DEVICE, f"{what}: on {actual.device}"
    if not values:
        assert (actual.shape, actual.dtype, actual.stride()) == (
            expected.shape,
            expected.dtype,
            expected.stride(),
        ), f"{what}: other shape, dtype or strides"
        return
    torch.testing.assert_close(
        actual.detach().cpu(),
        expected.detach(),
        equal_nan=True,
        check_stride=False,
        msg=lambda m: f"{what}: {m}",
    )


def as_near(actual: torch.Tensor, expected: torch.Tensor, exact: torch.Tensor) -> bool:
    """Whether npu's largest error against the float64 result is at most twice that of stock CPU."""
    if actual.device.type != DEVICE:
        return False
    actual = actual.detach().cpu()
    if actual.dtype != expected.dtype or actual.shape != expected.shape or exact.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return torch.equal(actual, expected)
    finite = exact.isfinite()
    if not torch.equal(actual.double()[~finite].nan_to_num(), exact[~finite].nan_to_num()):
        return False
    if not finite.any():
        return True
    error = (actual.double() - exact)[finite].abs().max()
    return bool(error <= 2 * (expected.double() - exact)[finite].abs().max())
