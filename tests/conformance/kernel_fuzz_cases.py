"""Random calls of every fused kernel, for kernel_fuzz.py: shapes, layouts, flags."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from mindspeed_ms import kernels
from mindspeed_ms.kernels.activation import ACTIVATIONS
from mindspeed_ms.kernels.rope import LAYOUTS

Tensor = torch.Tensor
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Case:
    """One call: `function(*inputs)`; floating inputs are converted for the reference and get gradients."""

    function: Callable[..., Tensor]
    inputs: list[Tensor]
    rows: list[int] = field(default_factory=list)
    """Indices of inputs whose rows (all but the last dimension) are those of the result."""
    cancels: bool = False
    """A gradient may be a difference of large terms: errors are relative to the largest of all results."""
    differentiable: bool = True


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


def packed_attention(draw: Draw) -> Case:
    """Packed sequences, at times with padding between or of other lengths for keys."""
    draw.special = False
    count, groups = draw.choose.randint(0, 4), draw.choose.randint(1, 3)
    lengths = [[draw.size(30) for _ in range(count)] for _ in range(2)]
    if draw.flag():
        lengths[1] = lengths[0]
    rests = [[draw.choose.choice((0, 0, 3)) for _ in range(count)] for _ in range(2)]
    sums, places = [], []
    for own, padding in zip(lengths, rests, strict=True):
        sums.append(torch.tensor([0, *own]).cumsum(0))
        places.append(torch.tensor([0, *(a + b for a, b in zip(own, padding, strict=True))]).cumsum(0))
    segments = kernels.packed_segments(*sums, *places, shift=draw.choose.choice((None, 0)))
    rows = [int(p[-1]) + draw.choose.choice((0, 2)) for p in places]
    heads, dim, value_dim = groups * draw.choose.randint(1, 3), draw.width(64), draw.width(64)
    inputs = [
        draw.tensor(rows[0], heads, dim),
        draw.tensor(rows[1], groups, dim),
        draw.tensor(rows[1], groups, value_dim),
    ]
    options = {"causal": draw.flag(), "scale": dim**-0.5, "segments": segments}
    return Case(lambda q, k, v: kernels.attention(q, k, v, **options), inputs, cancels=True)


def router(draw: Draw) -> Case:
    """Logits of which no two, and no two groups, are equally good: of equal ones any may be chosen."""
    draw.special = False
    tokens, groups = draw.size(), draw.choose.choice((None, 2, 4))
    experts = (groups or 1) * draw.choose.randint(1, 40)
    topk = draw.choose.randint(1, min(experts, 8))
    group_topk = None
    if groups:
        fits = [g for g in range(1, groups + 1) if g <= topk <= g * (experts // groups)]
        fits = [g for g in fits if topk // g <= experts // groups]
        group_topk = draw.choose.choice(fits) if fits else None
        groups = groups if fits else None
    function, before = draw.choose.choice((("softmax", True), ("softmax", False), ("sigmoid", False)))
    if groups:
        draw.dtype = torch.float32  # sums of 16-bit scores are often equal
    ranks = [torch.randperm(experts) for _ in range(tokens)]
    logits = torch.stack(ranks).float() if ranks else torch.empty(0, experts)
    logits = (torch.sqrt(logits + 1.0) - 4.0).to(draw.device, draw.dtype)
    options = {"score_function": function, "pre_softmax": before, "groups": groups, "group_topk": group_topk}
    scale = draw.choose.choice((None, 2.5))
    return Case(lambda x: kernels.topk_router(x, topk, scaling_factor=scale, **options)[0], [logits], [0])


def auxiliary_scores(draw: Draw) -> Case:
    draw.special = False
    logits = draw.tensor(draw.size(), draw.width(60))
    function = draw.choose.choice(("softmax", "sigmoid"))
    topk = draw.choose.randint(1, logits.shape[1])
    return Case(lambda x: kernels.auxiliary_scores(x, topk, function)[1], [logits], [0])


def there_and_back(draw: Draw) -> Case:
    """Tokens to rows of experts and back, with or without probabilities, padded or not."""
    draw.special = False
    tokens, experts = draw.size(), draw.choose.randint(1, 9)
    routing_map = (torch.rand(tokens, experts) < draw.choose.choice((0.1, 0.5, 1.1))).to(draw.device)
    capacity = draw.choose.choice((None, None, 3))
    x = draw.tensor(tokens, draw.width())
    weights = [draw.tensor(tokens, experts)] if draw.flag() else []

    def call(x: Tensor, *probs: Tensor) -> Tensor:
        rows = kernels.permutation(routing_map, capacity)
        permuted = kernels.gather_rows(x, rows.token)
        merging = probs[0][rows.token, rows.expert] if probs else None
        return kernels.combine_rows(permuted, rows.token, tokens, merging)

    return Case(call, [x, *weights], cancels=True)


def grouped_matmul(draw: Draw) -> Case:
    draw.special = False
    counts = [draw.size(20) for _ in range(draw.choose.randint(1, 5))]
    k, n, turned = draw.width(64), draw.width(64), draw.flag()
    weights = draw.tensor(len(counts), *((n, k) if turned else (k, n)))
    x = draw.tensor(sum(counts), k)
    return Case(lambda x, w: kernels.grouped_matmul(x, w, counts, turned=turned), [x, weights], cancels=True)


def linear_cross_entropy(draw: Draw) -> Case:
    draw.special = False
    rows, width, vocabulary = draw.size(), draw.width(64), draw.width() + 1
    target = torch.randint(0, vocabulary, (rows,)).to(draw.device)
    x = draw.tensor(rows, width)
    w = (torch.randn(vocabulary, width) * width**-0.5).to(draw.device, draw.dtype)
    chunk = draw.choose.choice((1, 1 << 12, 1 << 26))
    return Case(
        lambda x, w: kernels.linear_cross_entropy(x, w, target, chunk_bytes=chunk).unsqueeze(-1), [x, w],
        cancels=True,
    )  # fmt: skip


def embedding_grad(draw: Draw) -> Case:
    rows, table = draw.size(), draw.width(50)
    ids = torch.randint(-1, table + 1, (rows,)).to(draw.device)  # some are outside of the table
    grad = draw.tensor(rows, draw.width())
    draw.special = False
    skip = draw.choose.choice((-1, 0))
    return Case(
        lambda g: kernels.embedding_grad(g, ids, table, padding_idx=skip), [grad], differentiable=False
    )


def adam(draw: Draw) -> Case:
    """Three steps of several parameters; the new parameters, one after the other."""
    draw.special = False
    shapes = [(draw.size(), draw.width()) for _ in range(draw.choose.randint(1, 3))]
    grads = [draw.tensor(*shape) for shape in shapes]
    starts = [torch.randn(shape).to(draw.device) for shape in shapes]
    options = {
        "lr": 0.1, "eps": 1e-6, "weight_decay": draw.choose.choice((0.0, 0.1)), "decoupled": draw.flag(),
        "bias_correction": draw.flag(), "maximize": draw.flag(), "grad_scale": draw.choose.choice((1.0, 0.5)),
    }  # fmt: skip

    def call(*grads: Tensor) -> Tensor:
        wide = torch.float64 if grads[0].dtype == torch.float64 else torch.float32
        params = [start.to(wide, copy=True) for start in starts]
        moments = [[torch.zeros_like(p) for p in params] for _ in range(2)]
        for step in (1, 2, 3):
            kernels.adam_step(params, grads, *moments, step=step, **options)
        return torch.cat([p.flatten() for p in params]).unsqueeze(-1)

    return Case(call, grads, differentiable=False, cancels=True)


def multi_scale(draw: Draw) -> Case:
    draw.special = False
    tensors = [draw.tensor(draw.size(), draw.width()) for _ in range(draw.choose.randint(1, 3))]

    def call(*inputs: Tensor) -> Tensor:
        outputs = [torch.empty_like(x) for x in inputs]
        found, norms = kernels.multi_scale(inputs, 0.5, outputs, want_norms=True)
        assert not found
        whole = torch.cat([x.flatten() for x in outputs])
        return torch.cat((whole, whole.new_tensor(norms).to(whole.device))).unsqueeze(-1)

    return Case(call, tensors, differentiable=False)


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
    "packed_attention": packed_attention,
    "router": router,
    "auxiliary_scores": auxiliary_scores,
    "permutation": there_and_back,
    "grouped_matmul": grouped_matmul,
    "linear_cross_entropy": linear_cross_entropy,
    "embedding_grad": embedding_grad,
    "adam": adam,
    "multi_scale": multi_scale,
}
