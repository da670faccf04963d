"""Checks of one operator against stock CPU: same sample, same seed, both devices, all results compared.

A sample that raises on CPU is not a check. What is compared: values, dtypes and shapes of the results, the
device they are on, which of them share memory with what, and values and version counters of the arguments
after the call (an in-place operator, the running statistics of a normalisation).

On target Ascend the device draws random numbers with an engine of its own. Where a sample's values differ and
CPU drew some, too, what is compared is all but values, and that the same seed gives the same values again.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch.testing._internal.opinfo.core import OpInfo, SampleInput
from torch.utils._pytree import tree_map

from .catalogue import SEED, name_of, samples_of
from .comparison import DEVICE, UNDEFINED_VALUES, Outcome, as_near, compare
from .placement import Arguments, Placement, sharing, tensors_of

# The database looks for CUDA when it is imported, and the bridge makes it available: the bridge comes second.
import mindspeed_ms.patch  # noqa: F401 isort: skip
from mindspeed_ms import routes
from mindspeed_ms.routes import coverage, on_ascend


@dataclass
class Row:
    """Outcome of one (operator, dtype, variant)."""

    op: str
    dtype: str
    variant: str
    result: str = "pass"  # pass, fail, crash, timeout, none (no sample that passes on stock CPU)
    passed: int = 0
    failed: int = 0
    skipped: int = 0  # samples that stock CPU refuses
    rounding: int = 0  # of the passed: other values than CPU's, but as near to the float64 result
    random: int = 0  # of the passed: other random numbers than CPU's, the same again from the same seed
    routes: dict[str, list[str]] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)  # message -> samples

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check(op: OpInfo, dtype: torch.dtype, variant: str, limit: int = 0) -> Row:
    """Runs `variant` of every sample on CPU and npu and compares."""
    row = Row(name_of(op), str(dtype).removeprefix("torch."), variant)
    program: Program = PROGRAMS[variant]
    coverage.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, sample in enumerate(samples_of(op, dtype, limit, variant == "backward")):
            try:
                with routes.route("host"):
                    expected = program(op, sample, "cpu", number)
            except Exception:  # whatever stock torch raises: the sample is no check
                expected = None
            if expected is None:
                row.skipped += 1
                continue
            try:
                actual = program(op, sample, DEVICE, number)
                try:
                    compare(actual, expected, op.name not in UNDEFINED_VALUES)
                except AssertionError:
                    if on_ascend() and _draws(program, op, sample, number, expected):
                        compare(actual, expected, values=False)
                        compare(actual, _on_host(program(op, sample, DEVICE, number)))
                        row.random += 1
                    # Other kernels round otherwise: right, if they are as near to float64 as CPU.
                    elif not _as_near_to_float64(program, op, sample, number, actual, expected):
                        raise
                    else:
                        row.rounding += 1
            except Exception as error:  # any failure is the finding that this row reports
                message = " ".join(f"{type(error).__name__}: {error}".split())[:400]
                row.errors[message] = row.errors.get(message, 0) + 1
                row.failed += 1
            else:
                row.passed += 1
    for counted in coverage.snapshot():
        row.routes.setdefault(counted["route"], []).append(counted["op"])
    row.routes = {route: sorted(set(ops)) for route, ops in row.routes.items()}
    row.result = "fail" if row.failed else "pass" if row.passed else "none"
    return row


OTHER_SEEDS = 16
"""Of small samples another seed may draw what leads to the same values."""


def _draws(program: Program, op: OpInfo, sample: SampleInput, number: int, expected: Outcome) -> bool:
    """Whether stock CPU gives other values when every seed, the database's own too, is another one."""
    seed = torch.manual_seed
    values = tensors_of((expected.results, expected.arguments))
    for other in range(1, OTHER_SEEDS + 1):
        torch.manual_seed = lambda number, other=other: seed(number + other)
        try:
            with routes.route("host"):
                outcome = program(op, sample, "cpu", number)
        finally:
            torch.manual_seed = seed
        assert outcome is not None
        pairs = zip(tensors_of((outcome.results, outcome.arguments)), values, strict=True)
        if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs):
            return True
    return False


def _on_host(outcome: Outcome | None) -> Outcome:
    assert outcome is not None
    moved = tree_map(lambda x: x.cpu() if isinstance(x, torch.Tensor) else x, outcome.results)
    return replace(outcome, results=moved, arguments=[t.cpu() for t in outcome.arguments])


def _as_near_to_float64(
    program: Program, op: OpInfo, sample: SampleInput, number: int, actual: Outcome | None, expected: Outcome
) -> bool:
    """Whether every floating result of `actual` is at most twice as far from the float64 result as CPU's."""
    if actual is None or (actual.versions, actual.shared) != (expected.versions, expected.shared):
        return False
    try:
        with routes.route("host"):
            exact = program(op, sample.transform(_in_float64), "cpu", number)
    except Exception:  # the operator does not take float64 here: there is no reference
        return False
    triples = [tensors_of((outcome.results, outcome.arguments)) for outcome in (actual, expected, exact)]
    return len({len(tensors) for tensors in triples}) == 1 and all(
        as_near(a, e, x) for a, e, x in zip(*triples, strict=True)
    )


def _in_float64(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return torch.float64 if value in (torch.float32, torch.bfloat16, torch.float16) else value


Program = Callable[[OpInfo, SampleInput, str, int], Outcome | None]


def _call(op: Callable, arguments: Arguments, **extra: Any) -> Outcome:
    tensors = arguments.tensors()
    before = [t._version for t in tensors]
    # A factory is told its device by the context, where the sample does not name one.
    context = contextlib.nullcontext() if tensors else torch.device(arguments.device)
    torch.manual_seed(SEED)
    with context:
        results = op(arguments.input, *arguments.args, **arguments.kwargs, **extra)
    if isinstance(results, Iterator):
        results = list(results)
    versions = [t._version - b for t, b in zip(tensors, before, strict=True)]
    return Outcome(results, tensors, versions, sharing(tensors_of(results), tensors))


def _forward(op: OpInfo, sample: SampleInput, device: str, _number: int) -> Outcome:
    return _call(op, Arguments(sample, device))


def _inplace(op: OpInfo, sample: SampleInput, device: str, _number: int) -> Outcome | None:
    if sample.broadcasts_input:
        return None
    return _call(op.inplace_variant, Arguments(sample, device))


def _out(op: OpInfo, sample: SampleInput, device: str, number: int) -> Outcome | None:
    """Even samples write into a strided tensor of the right size, odd ones into an empty one, which grows."""
    torch.manual_seed(SEED)
    arguments = Arguments(sample, "cpu")
    results = op(arguments.input, *arguments.args, **arguments.kwargs)
    if not tensors_of(results):
        return None

    def target(result: torch.Tensor) -> torch.Tensor:
        if number % 2 or result.dim() == 0:
            return torch.empty(0 if number % 2 else (), dtype=result.dtype)
        wide = torch.zeros((*result.shape[:-1], 2 * result.shape[-1]), dtype=result.dtype)
        return wide[..., ::2]

    out = Placement(device).tree(tree_map(target, results))
    if isinstance(out, (tuple, list)):
        out = tuple(out)
    outcome = _call(op, Arguments(sample, device), out=out)
    outcome.arguments += tensors_of(out)
    return outcome


def _backward(op: OpInfo, sample: SampleInput, device: str, _number: int) -> Outcome | None:
    arguments = Arguments(sample, device)
    leaves = [t for t in arguments.tensors() if t.requires_grad]
    outcome = _call(op, arguments)
    results = sample.output_process_fn_grad(outcome.results)
    outputs = [t for t in tensors_of(results) if t.requires_grad]
    if not leaves or not outputs:
        return None
    random = torch.Generator().manual_seed(SEED)
    # bfloat16 numbers are the same numbers in every floating dtype.
    seeds = [torch.randn(t.shape, generator=random).bfloat16() for t in outputs]
    seeds = [s.to(t.dtype).to(device) for s, t in zip(seeds, outputs, strict=True)]
    grads = torch.autograd.grad(outputs, leaves, seeds, allow_unused=True)
    return Outcome(grads, [], [], [])


PROGRAMS: dict[str, Program] = {
    "forward": _forward,
    "backward": _backward,
    "inplace": _inplace,
    "out": _out,
}
