"""Random shapes, layouts, flags and values for every fused kernel, against the same function in float64.

    python -m tests.conformance.kernel_fuzz [--cases N] [--seed N] [--kernel NAME ...] [--isa NAME]
    python -m tests.conformance.sanitizer tests.conformance.kernel_fuzz --cases 10000

float64 tensors take the composite in torch operators, so the public function is its own reference. A case
also draws layouts (contiguous, transposed, every other column, expanded), empty dimensions, and at times
values that are huge, NaN or infinite: those must stay in their rows. Case i of a seed is the same on every
machine; a failure prints its number, `--only I` runs it alone.

The table at the end sets our errors beside those of the composite in torch operators on the same inputs, in
the same dtype: the largest relative to the largest value, and the L2 norm relative to that of the result,
each as the mean over cases. It exits with 1 if a case failed, or if the errors of a kernel are, on average,
larger than torch's by more than the scatter allows.

The second form runs the same under AddressSanitizer.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from mindspeed_ms import kernels
from mindspeed_ms.routes import route

from tests.benchmarks.report import table
from tests.conformance.kernel_fuzz_cases import CASES, Case, Draw, Tensor

#: Largest error of a result, and of a gradient, relative to the largest value of the row (of the tensor).
ERROR = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (2e-2, 4e-2), torch.float16: (3e-3, 1e-2)}
#: Our mean error over torch's beyond which a kernel counts as worse: rounding falls differently by chance.
SCATTER = 1.1
ENOUGH = 50
#: Where the composite is no measure for 16-bit types, as it keeps in float32 what torch's own kernels round:
#: those are compared in tests/unit instead.
KEEPS_FLOAT32 = {
    "attention": "scaled_dot_product_attention rounds probabilities, too (test_kernels_attention)",
    "packed_attention": "scaled_dot_product_attention rounds probabilities, too (test_kernels_attention)",
    "scaled_softmax": "torch.softmax, too, makes its gradient of the rounded result (test_kernels_fused)",
}


@dataclass
class Errors:
    """Sums over the cases of one kernel and dtype: [ours, torch's]."""

    cases: int = 0
    largest: list[float] = field(default_factory=lambda: [0.0, 0.0])
    square: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def add(self, found: list[list[Tensor]], exact: list[Tensor], together: bool) -> None:
        """Results of both on a case of finite values; `together`: relative to the largest of all results."""
        self.cases += 1
        highest = [_scale(y) for y in exact if y.numel()]
        norms = [y.norm().clamp_min(1e-2) for y in exact if y.numel()]
        if together:
            highest, norms = [max(highest)] * len(highest), [max(norms)] * len(norms)
        for side, results in enumerate(found):
            pairs = [(x.double() - y).abs() for x, y in zip(results, exact, strict=True) if y.numel()]
            self.largest[side] += max((d.max() / h).item() for d, h in zip(pairs, highest, strict=True))
            self.square[side] += max((d.norm() / n).item() for d, n in zip(pairs, norms, strict=True))

    def row(self) -> dict[str, float]:
        """Mean errors, and how ours compare."""
        names = ("max, ours", "max, torch", "L2, ours", "L2, torch")
        means = [value / max(self.cases, 1) for value in (*self.largest, *self.square)]
        return dict(zip(names, means, strict=True))

    def worse(self) -> bool:
        """Whether ours are larger than chance explains; a few cases explain nothing."""
        return self.cases >= ENOUGH and any(
            ours > SCATTER * theirs + 1e-9 * self.cases for ours, theirs in (self.largest, self.square)
        )


def _scale(exact: Tensor) -> Tensor:
    return exact.abs().max().clamp_min(1e-2)


def run(case: Case, inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The result and the gradient of each input; the gradient that comes in is one of `dtype`."""
    if not case.differentiable:
        return [case.function(*inputs)]
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = case.function(*leaves)
    # Not nearly constant: in a norm or a softmax such a gradient cancels, and rounding is all that is left.
    weight = torch.cos(torch.arange(out.numel())).reshape(out.shape).to(out.device, dtype).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, weight, materialize_grads=True)]


def check(name: str, seed: int, errors: dict[tuple[str, torch.dtype], Errors]) -> str | None:
    """Runs case `seed` of kernel `name`; what is wrong with it, or None."""
    draw = Draw(seed)
    case = CASES[name](draw)
    inputs = list(case.inputs)
    if draw.special:
        for index in case.rows:
            inputs[index] = draw.spoil(inputs[index])
    found = run(case, inputs, draw.dtype)
    exact = run(case, [x.double() for x in inputs], draw.dtype)
    with route("composite"):
        theirs = run(case, inputs, draw.dtype)
    sound = torch.ones(found[0].shape[:-1], dtype=torch.bool, device=found[0].device)
    for index in case.rows:
        sound = sound & (inputs[index].abs() < 1e4).all(-1)
    value_error, gradient_error = ERROR[draw.dtype]
    largest = max((t.abs().max() for t in exact if t.numel()), default=torch.zeros(()))
    for position, results in enumerate(zip(found, exact, theirs, strict=True)):
        ours, truth, composite = results
        if ours.shape != truth.shape:
            return f"result {position} has shape {tuple(ours.shape)}, expected {tuple(truth.shape)}"
        by_row = position == 0 or position - 1 in case.rows
        if draw.special and not by_row:
            continue  # a sum over all rows has the spoilt ones in it
        if not ours.numel():
            continue
        if by_row and case.rows:
            ours, truth, composite = (t[sound] for t in results)
        if not ours.numel():
            continue
        limit = value_error if position == 0 else gradient_error
        scale = _scale(truth)
        if case.cancels and position:
            scale = torch.maximum(scale, largest)
        worst, torchs = (((t.double() - truth).abs().max() / scale).item() for t in (ours, composite))
        # Where large terms cancel, torch's error is as large.
        if not worst <= max(limit, 1.5 * torchs):
            return f"result {position} is off by {worst:.1e} of its largest value, torch by {torchs:.1e}"
    if not draw.special and any(x.numel() for x in exact):
        errors[name, draw.dtype].add([found, theirs], exact, case.cancels)
    return None


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=2000, help="cases in all")
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="run this case alone")
    parser.add_argument("--kernel", nargs="*", choices=sorted(CASES), default=sorted(CASES))
    parser.add_argument("--isa", default="auto", help="instruction set: portable, avx2, avx512, avx512_bf16")
    options = parser.parse_args()
    import mindspeed_ms.patch  # noqa: F401 - the device

    kernels.force_isa(options.isa)
    seeds = [options.only] if options.only is not None else range(options.seed, options.seed + options.cases)
    failures = 0
    errors: dict[tuple[str, torch.dtype], Errors] = defaultdict(Errors)
    for seed in seeds:
        name = options.kernel[seed % len(options.kernel)]
        try:
            problem = check(name, seed, errors)
        except Exception as error:  # the kernel or its composite refused what it should take: a failure, too
            problem = f"{type(error).__name__}: {error}"
        if problem:
            failures += 1
            print(f"case {seed} ({name}): {problem}", flush=True)
    rows, worse = [], 0
    for (name, dtype), sums in sorted(errors.items(), key=lambda item: (item[0][0], str(item[0][1]))):
        excuse = KEEPS_FLOAT32.get(name) if dtype != torch.float32 else None
        worse += sums.worse() and not excuse
        row = {"kernel": name, "dtype": str(dtype).removeprefix("torch."), "cases": sums.cases, **sums.row()}
        rows.append(row | {"": (excuse or "worse than torch") if sums.worse() else ""})
    print(table(rows))
    print(f"{len(seeds)} cases on {kernels.isa()}, {failures} failed, {worse} rows worse than torch")
    return 1 if failures or worse else 0


if __name__ == "__main__":
    sys.exit(main())
