"""Random shapes, layouts, flags and values for every fused kernel, against the same function in float64.

    python -m tests.conformance.kernel_fuzz [--cases N] [--seed N] [--kernel NAME ...] [--isa NAME]

float64 tensors take the composite in torch operators, so the public function is its own reference. A case
also draws layouts (contiguous, transposed, every other column, expanded), empty dimensions, and at times
values that are huge, NaN or infinite: those must stay in their rows. Case i of a seed is the same on every
machine; a failure prints its number, `--only I` runs it alone. It exits with 1 if a case failed.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from mindspeed_ms import kernels
from mindspeed_ms.kernels.activation import ACTIVATIONS
from mindspeed_ms.kernels.rope import LAYOUTS

Tensor = torch.Tensor
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Largest error of a result, and of a gradient, relative to the largest value of the row (of the tensor).
ERROR = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (2e-2, 4e-2), torch.float16: (3e-3, 1e-2)}


@dataclass
class Case:
    """One call: `function(*inputs)`; floating inputs are converted for the reference and get gradients."""

    function: Callable[..., Tensor]
    inputs: list[Tensor]
    rows: list[int] = field(default_factory=list)
    """Indices of inputs whose rows (all but the last dimension) are those of the result."""
    cancels: bool = False
    """A gradient may be a difference of large terms: errors are relative to the largest of all results."""


class Draw:
    """Random pieces of a case."""

    def __init__(self, seed: int) -> None:
        self.choose = random.Random(seed)
        torch.manual_seed(seed)
        self.dtype = self.choose.choice(DTYPES)
        self.special = self.choose.random() < 0.15
        self.device = self.choose.choice(("npu", "cpu"))

    def flag(self, probability: float = 0.5) -> bool:
        return self.choose.random() < probability

    def size(self, largest: int = 40) -> int:
        """Mostly small, at times 0, 1, or around a vector's width."""
        return self.choose.choice((0, 1, 2, 15, 16, 17, 31, 33, self.choose.randint(1, largest)))

    def width(self, largest: int = 200) -> int:
        return max(1, self.choose.choice((1, 2, 7, 16, 32, 33, 64, self.choose.randint(1, largest))))

    def tensor(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers of some scale in some layout."""
        dtype = dtype or self.dtype
        scale = self.choose.choice((0.1, 1.0, 3.0))
        layout = self.choose.randint(0, 3)
        if layout == 1 and len(shape) > 1:
            x = (torch.randn(shape[-1], *shape[1:-1], shape[0]) * scale).transpose(0, -1)
        elif layout == 2:
            x = (torch.randn(*shape[:-1], 2 * shape[-1]) * scale)[..., ::2]
        elif layout == 3 and len(shape) > 1:
            x = (torch.randn(1, *shape[1:]) * scale).expand(shape)
        else:
            x = torch.randn(shape) * scale
        return x.to(self.device).to(dtype)  # keeps the strides of dense layouts

    def spoil(self, x: Tensor) -> Tensor:
        """Some elements huge, infinite or NaN."""
        x = x.clone()  # expanded rows get memory of their own
        for _ in range(2 if x.numel() else 0):
            at = tuple(self.choose.randrange(n) for n in x.shape)
            x[at] = self.choose.choice((float("inf"), float("-inf"), float("nan"), 6e4))
        return x


def norm(draw: Draw, function: Callable[..., Any], bias: bool) -> Case:
    hidden = draw.width() + 3  # rows of one or two columns have no variance: rounding is all there is
    x = draw.tensor(draw.size(), draw.size(3), hidden)
    parameters = [draw.tensor(hidden) for _ in range(1 + bias)]
    zero_centered, residual = draw.flag(), draw.flag(0.3)

    def call(x: Tensor, *rest: Tensor) -> Tensor:
        if not residual:
            return function(x, *rest, 1e-5, zero_centered=zero_centered)
        y, total = function(x, *rest[:-1], 1e-5, zero_centered=zero_centered, residual=rest[-1])
        return y + total

    extra = [draw.tensor(*x.shape)] if residual else []
    return Case(call, [x, *parameters, *extra], [0, len(parameters) + 1] if residual else [0])


def activation(draw: Draw) -> Case:
    name = draw.choose.choice(sorted(ACTIVATIONS))
    x = draw.tensor(draw.size(), draw.size(3), draw.width())
    bias = [draw.tensor(x.shape[-1])] if draw.flag() else []
    return Case(lambda x, *b: kernels.bias_activation(x, *b, activation=name), [x, *bias], [0])


def glu(draw: Draw) -> Case:
    name = draw.choose.choice(sorted(ACTIVATIONS))
    x = draw.tensor(draw.size(), 2 * draw.width())
    bias = draw.tensor(x.shape[-1]) if draw.flag() else None
    weights = torch.rand(x.shape[0], 1).to(x) if draw.flag() else None
    offset = draw.choose.choice((0.0, 1.0))
    present = [t for t in (bias, weights) if t is not None]

    def call(x: Tensor, *rest: Tensor) -> Tensor:
        given = iter(rest)
        b = next(given) if bias is not None else None
        w = next(given) if weights is not None else None
        return kernels.bias_glu(x, b, name, weights=w, linear_offset=offset)

    return Case(call, [x, *present], [0])


def softmax(draw: Draw) -> Case:
    b, heads, queries, keys = draw.size(3), draw.size(4), draw.size(), draw.width(60)
    causal = draw.flag() and queries <= keys
    mask = None
    if draw.flag():
        shape = [draw.choose.choice((1, n)) for n in (b, heads, queries)]
        mask = (torch.rand(*shape, keys) < draw.choose.choice((0.3, 0.9, 1.1))).to(draw.device)
    scale = draw.choose.choice((1.0, 0.125, -2.0))
    x = draw.tensor(b, heads, queries, keys)
    return Case(lambda x: kernels.scaled_softmax(x, mask, scale, causal=causal), [x], [0])


def rope(draw: Draw) -> Case:
    sequence, batch, heads = draw.size(), draw.size(3), draw.size(4)
    channels = 2 * draw.width(32)
    rotary = 2 * draw.choose.randint(1, channels // 2)
    layout = draw.choose.choice(sorted(LAYOUTS))
    freqs = torch.randn(sequence, 1, 1, rotary // 2).repeat(1, 1, 1, 2).to(draw.device)
    x = draw.tensor(sequence, batch, heads, channels)
    return Case(lambda x: kernels.rope(x, freqs, layout, mscale=1.1), [x], [0])


def dropout_add(draw: Draw) -> Case:
    x = draw.tensor(draw.size(), draw.size(3), draw.width())
    bias = [draw.tensor(x.shape[-1])] if draw.flag() else []
    probability, seed = draw.choose.choice((0.0, 0.1, 1.0)), draw.choose.randrange(1000)

    def call(x: Tensor, residual: Tensor, *b: Tensor) -> Tensor:
        generator = torch.Generator(x.device).manual_seed(seed)
        return kernels.bias_dropout_add(x, b[0] if b else None, residual, probability, generator=generator)

    return Case(call, [x, draw.tensor(*x.shape), *bias], [0, 1])


def cross_entropy(draw: Draw) -> Case:
    rows, vocabulary = draw.size(), draw.width() + 1
    target = torch.randint(0, vocabulary, (rows,)).to(draw.device)
    smoothing = draw.choose.choice((0.0, 0.1))
    x = draw.tensor(rows, vocabulary)
    return Case(lambda x: kernels.vocab_parallel_cross_entropy(x, target, smoothing).unsqueeze(-1), [x], [0])


def attention(draw: Draw) -> Case:
    draw.special = False  # a NaN in a key reaches every query that sees it
    queries, batch, groups = draw.size(), draw.size(2), max(1, draw.size(3) % 4)
    keys = max(queries, draw.size())
    heads, dim, value_dim = groups * draw.choose.randint(1, 3), draw.width(64), draw.width(64)
    causal = draw.flag()
    window = (draw.choose.randint(0, 20), 0) if draw.flag(0.2) else None
    softcap = draw.choose.choice((None, 5.0))
    inputs = [
        draw.tensor(queries, batch, heads, dim),
        draw.tensor(keys, batch, groups, dim),
        draw.tensor(keys, batch, groups, value_dim),
    ]
    options = {"causal": causal, "scale": dim**-0.5}
    options |= {"window": window} if window else {}
    options |= {"softcap": softcap} if softcap else {}
    return Case(lambda q, k, v: kernels.attention(q, k, v, **options), inputs, cancels=True)


CASES: dict[str, Callable[[Draw], Case]] = {
    "rms_norm": lambda draw: norm(draw, kernels.rms_norm, bias=False),
    "layer_norm": lambda draw: norm(draw, kernels.layer_norm, bias=True),
    "bias_activation": activation,
    "bias_glu": glu,
    "scaled_softmax": softmax,
    "rope": rope,
    "bias_dropout_add": dropout_add,
    "cross_entropy": cross_entropy,
    "attention": attention,
}


def run(case: Case, inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The result and the gradient of each input; the gradient that comes in is one of `dtype`."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = case.function(*leaves)
    # Not nearly constant: in a norm or a softmax such a gradient cancels, and rounding is all that is left.
    weight = torch.cos(torch.arange(out.numel())).reshape(out.shape).to(out.device, dtype).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, weight, materialize_grads=True)]


def check(name: str, seed: int) -> str | None:
    """Runs case `seed` of kernel `name`; what is wrong with it, or None."""
    draw = Draw(seed)
    case = CASES[name](draw)
    inputs = list(case.inputs)
    if draw.special:
        for index in case.rows:
            inputs[index] = draw.spoil(inputs[index])
    found = run(case, inputs, draw.dtype)
    exact = run(case, [x.double() for x in inputs], draw.dtype)
    sound = torch.ones(found[0].shape[:-1], dtype=torch.bool, device=found[0].device)
    for index in case.rows:
        sound = sound & (inputs[index].abs() < 1e4).all(-1)
    value_error, gradient_error = ERROR[draw.dtype]
    largest = max((t.abs().max() for t in exact if t.numel()), default=torch.zeros(()))
    for position, (ours, truth) in enumerate(zip(found, exact, strict=True)):
        if ours.shape != truth.shape:
            return f"result {position} has shape {tuple(ours.shape)}, expected {tuple(truth.shape)}"
        by_row = position == 0 or position - 1 in case.rows
        if draw.special and not by_row:
            continue  # a sum over all rows has the spoilt ones in it
        if not ours.numel():
            continue
        ours, truth = (t[sound] if by_row else t for t in (ours.double(), truth))
        if not ours.numel():
            continue
        limit = value_error if position == 0 else gradient_error
        scale = truth.abs().max().clamp_min(1e-2)
        if case.cancels and position:
            scale = torch.maximum(scale, largest)
        worst = ((ours - truth).abs().max() / scale).item()
        if not worst <= limit:
            return f"result {position} is off by {worst:.1e} of its largest value (limit {limit:.0e})"
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
    for seed in seeds:
        name = options.kernel[seed % len(options.kernel)]
        try:
            problem = check(name, seed)
        except Exception as error:  # the kernel or its composite refused what it should take: a failure, too
            problem = f"{type(error).__name__}: {error}"
        if problem:
            failures += 1
            print(f"case {seed} ({name}): {problem}", flush=True)
    print(f"{len(seeds)} cases on {kernels.isa()}, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
