"""The kernels of tests/benchmarks/kernels.py: our call, torch's best composite, and what the work costs.

A case is one layer's worth of a kernel, forward and backward. `bytes` counts what must pass through memory
once, whatever the implementation: inputs read, results written, saved tensors read again by backward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mindspeed_ms import kernels

Tensor = torch.Tensor
HEAD = 128
VOCABULARY = 32000
FASTER = {"memory": 2.0, "attention": 1.5, "optimizer": 1.2}
"""Kind of a case -> how many times faster than torch it must be; other kinds are shown without a mark."""


@dataclass(frozen=True)
class Size:
    """Shape of a layer's input."""

    tokens: int
    hidden: int
    dtype: torch.dtype

    @property
    def name(self) -> str:
        return f"{self.tokens} x {self.hidden} {str(self.dtype).removeprefix('torch.')}"

    @property
    def item(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize


@dataclass(frozen=True)
class Case:
    """`ours`, `theirs` (torch's best) and `eager` take the same inputs (on npu and on CPU) for the same work.

    `eager`, torch's composite of elementary operators, is given where torch's best is one fused operator.
    """

    inputs: list[Tensor]
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    bytes: int
    kind: str = "memory"
    differentiate: bool = True
    eager: Callable[..., Tensor] | None = None


def random(size: Size, *shape: int, scale: float = 1.0) -> Tensor:
    """Normally distributed values of the size's dtype."""
    return (torch.randn(shape) * scale).to(size.dtype)


def rms_norm(size: Size) -> Case:
    x, w = random(size, size.tokens, 1, size.hidden), random(size, size.hidden)
    return Case(
        [x, w],
        lambda x, w: kernels.rms_norm(x, w, 1e-5),
        lambda x, w: F.rms_norm(x, (size.hidden,), w, 1e-5),
        5 * x.numel() * size.item,
    )


def layer_norm(size: Size) -> Case:
    x = random(size, size.tokens, 1, size.hidden)
    w, b = random(size, size.hidden), random(size, size.hidden)

    def eager(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * w + b

    return Case(
        [x, w, b],
        lambda x, w, b: kernels.layer_norm(x, w, b, 1e-5),
        lambda x, w, b: F.layer_norm(x, (size.hidden,), w, b, 1e-5),
        5 * x.numel() * size.item,
        eager=eager,
    )


def residual_rms_norm(size: Size) -> Case:
    x, r = (random(size, size.tokens, 1, size.hidden) for _ in range(2))
    w = random(size, size.hidden)

    def ours(x: Tensor, r: Tensor, w: Tensor) -> Tensor:
        return kernels.rms_norm(x, w, 1e-5, residual=r)[0]

    def theirs(x: Tensor, r: Tensor, w: Tensor) -> Tensor:
        return F.rms_norm(x + r, (size.hidden,), w, 1e-5)

    return Case([x, r, w], ours, theirs, 7 * x.numel() * size.item)


def bias_gelu(size: Size) -> Case:
    x, b = random(size, size.tokens, 1, 4 * size.hidden), random(size, 4 * size.hidden)
    return Case(
        [x, b],
        lambda x, b: kernels.bias_activation(x, b, "gelu_tanh"),
        lambda x, b: F.gelu(x + b, approximate="tanh"),
        5 * x.numel() * size.item,
    )


def swiglu(size: Size) -> Case:
    half = 8 * size.hidden // 3 // 64 * 64
    x = random(size, size.tokens, 1, 2 * half)

    def theirs(x: Tensor) -> Tensor:
        gate, linear = x.chunk(2, -1)
        return F.silu(gate) * linear

    return Case([x], lambda x: kernels.bias_glu(x, None, "silu"), theirs, 4 * x.numel() * size.item)


def weighted_swiglu(size: Size) -> Case:
    half = 8 * size.hidden // 3 // 64 * 64
    x, p = random(size, size.tokens, 2 * half), torch.rand(size.tokens, 1)

    def theirs(x: Tensor, p: Tensor) -> Tensor:
        gate, linear = x.chunk(2, -1)
        return (F.silu(gate) * linear * p).to(x.dtype)

    return Case(
        [x, p], lambda x, p: kernels.bias_glu(x, None, "silu", weights=p), theirs, 4 * x.numel() * size.item
    )


def bias_residual(size: Size) -> Case:
    x, r = (random(size, size.tokens, 1, size.hidden) for _ in range(2))
    b = random(size, size.hidden)
    return Case(
        [x, b, r],
        lambda x, b, r: kernels.bias_dropout_add(x, b, r, 0.0),
        lambda x, b, r: r + (x + b),
        4 * x.numel() * size.item,  # backward hands the gradient on and sums it for the bias
    )


def bias_dropout_residual(size: Size) -> Case:
    x, r = (random(size, size.tokens, 1, size.hidden) for _ in range(2))
    b = random(size, size.hidden)
    return Case(
        [x, b, r],
        lambda x, b, r: kernels.bias_dropout_add(x, b, r, 0.1),
        lambda x, b, r: r + F.dropout(x + b, 0.1),
        x.numel() * (5 * size.item + 3),
        kind="random",  # both draw torch's masks, one after the other: nobody is bound by memory
    )


def causal_softmax(size: Size) -> Case:
    heads, length = 16, min(size.tokens, 1024)
    x = random(size, 1, heads, length, length)
    later = torch.ones(length, length, dtype=torch.bool).triu(1)

    def theirs(x: Tensor) -> Tensor:
        return torch.softmax((x * 0.125).masked_fill(later, -10000.0), -1)

    return Case(
        [x], lambda x: kernels.scaled_softmax(x, None, 0.125, causal=True), theirs, 5 * x.numel() * size.item
    )


def masked_softmax(size: Size) -> Case:
    heads, length = 16, min(size.tokens, 1024)
    x = random(size, 1, heads, length, length)
    mask = torch.rand(1, 1, length, length) < 0.3
    npu_mask = mask.to("npu")

    def theirs(x: Tensor) -> Tensor:
        return torch.softmax((x * 0.125).masked_fill(mask, -10000.0), -1)

    return Case([x], lambda x: kernels.scaled_softmax(x, npu_mask, 0.125), theirs, 5 * x.numel() * size.item)


def rope(size: Size) -> Case:
    x = random(size, size.tokens, 1, size.hidden // HEAD, HEAD)
    freqs = torch.outer(torch.arange(size.tokens).float(), 1e4 ** -torch.linspace(0, 1, HEAD // 2))
    freqs = torch.cat((freqs, freqs), -1).view(size.tokens, 1, 1, HEAD)
    cos, sin, npu_freqs = freqs.cos().to(size.dtype), freqs.sin().to(size.dtype), freqs.to("npu")

    def theirs(x: Tensor) -> Tensor:
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat((-high, low), -1) * sin

    return Case([x], lambda x: kernels.rope(x, npu_freqs), theirs, 4 * x.numel() * size.item)


def cross_entropy(size: Size) -> Case:
    rows = size.tokens // 4  # a quarter of the vocabulary's logits, as on 4 tensor-parallel ranks
    x, target = random(size, rows, VOCABULARY), torch.randint(VOCABULARY, (rows,))
    npu_target = target.to("npu")

    def eager(x: Tensor) -> Tensor:
        shifted = x.float() - x.float().amax(-1, keepdim=True).detach()
        return shifted.exp().sum(-1).log() - shifted.gather(1, target.unsqueeze(1)).squeeze(1)

    return Case(
        [x],
        lambda x: kernels.vocab_parallel_cross_entropy(x, npu_target),
        lambda x: F.cross_entropy(x.float(), target, reduction="none"),
        3 * x.numel() * size.item,
        eager=eager,
    )


def embedding_grad(size: Size) -> Case:
    """Added to a float32 gradient buffer, as Megatron keeps one."""
    grad, ids = random(size, size.tokens, size.hidden), torch.randint(VOCABULARY, (size.tokens,))
    table = torch.zeros(VOCABULARY, size.hidden)
    npu_ids, npu_table = ids.to("npu"), table.to("npu")
    return Case(
        [grad],
        lambda g: kernels.embedding_grad(g, npu_ids, VOCABULARY, out=npu_table),
        lambda g: table.index_add_(0, ids, g.float()),  # index_add_ takes the table's dtype only
        grad.numel() * (size.item + 8),
        kind="read",  # torch, too, touches each row once
        differentiate=False,
    )


def l2_norm(size: Size) -> Case:
    grads = [random(size, size.tokens, size.hidden) for _ in range(4)]

    def theirs(*grads: Tensor) -> Tensor:
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))

    return Case(
        grads,
        lambda *grads: kernels.l2_norm(grads),
        theirs,
        sum(g.numel() for g in grads) * size.item,
        kind="read",  # torch, too, reads everything once
        differentiate=False,
    )


def token_permutation(size: Size) -> Case:
    """Tokens to the rows of 2 of 8 experts each, and back, weighted; torch as Megatron without fusions."""
    x, probs = random(size, size.tokens, size.hidden), torch.rand(size.tokens, 8)
    routing_map = torch.zeros(size.tokens, 8, dtype=torch.bool)
    routing_map.scatter_(1, torch.rand(size.tokens, 8).topk(2).indices, True)
    rows = kernels.permutation(routing_map.to("npu"))
    token = rows.token.to("cpu")

    def ours(x: Tensor, probs: Tensor) -> Tensor:
        weights = kernels.gather_rows(probs.reshape(-1), rows.token * 8 + rows.expert)
        return kernels.combine_rows(kernels.gather_rows(x, rows.token), rows.token, size.tokens, weights)

    def theirs(x: Tensor, probs: Tensor) -> Tensor:
        weights = probs.T.contiguous().masked_select(routing_map.T.contiguous())
        moved = x.index_select(0, token) * weights.unsqueeze(-1)
        out = torch.zeros(size.tokens, size.hidden, dtype=moved.dtype)
        return out.scatter_add(0, token.unsqueeze(1).expand(-1, size.hidden), moved).to(x.dtype)

    # Rows are twice the tokens: 1 read, 2 written, 2 read, 1 written; backward the same, 3 more for probs.
    return Case([x, probs], ours, theirs, 15 * x.numel() * size.item)


def attention(size: Size) -> Case:
    heads = size.hidden // HEAD
    shape = (1, heads, size.tokens, HEAD)
    inputs = [random(size, *shape) for _ in range(3)]
    return Case(
        inputs,
        lambda q, k, v: kernels.attention(q, k, v, causal=True, layout="bhsd"),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        11 * inputs[0].numel() * size.item,
        kind="attention",
    )


def grouped_attention(size: Size) -> Case:
    heads = size.hidden // HEAD
    query = random(size, 1, heads, size.tokens, HEAD)
    key, value = (random(size, 1, heads // 4, size.tokens, HEAD) for _ in range(2))
    return Case(
        [query, key, value],
        lambda q, k, v: kernels.attention(q, k, v, causal=True, layout="bhsd"),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
        7 * query.numel() * size.item,
        kind="attention",
    )


def adamw(size: Size) -> Case:
    """A step over one matrix (hidden, 4 hidden); bfloat16: gradients of that dtype, and a copy of weights."""
    shape = (size.hidden, 4 * size.hidden)
    p, m, v = torch.randn(shape), torch.randn(shape), torch.rand(shape)
    g = random(size, *shape)
    ours = [t.to("npu") for t in (p, g, m, v)]
    half = size.dtype != torch.float32
    copies = [ours[0].to(size.dtype)] if half else []
    weights = p.to(size.dtype)
    parameter = torch.nn.Parameter(p.clone())
    parameter.grad = g.float()
    optimizer = torch.optim.AdamW([parameter], lr=1e-3, weight_decay=0.1, fused=True)
    counter = [0]

    def our_step(*_: Tensor) -> None:
        counter[0] += 1
        options = {"step": counter[0], "lr": 1e-3, "weight_decay": 0.1, "copies": copies}
        kernels.adam_step(*([t] for t in ours), **options)

    def their_step(*_: Tensor) -> None:
        if half:  # what Megatron's mixed precision optimizer does around torch's step
            parameter.grad.copy_(g)
        optimizer.step()
        if half:
            weights.copy_(parameter.detach())

    cost = p.numel() * (6 * 4 + (2 * size.item if half else size.item))
    return Case([], our_step, their_step, cost, kind="optimizer", differentiate=False)


CASES: dict[str, Callable[[Size], Case]] = {
    f.__name__: f
    for f in (
        rms_norm, layer_norm, residual_rms_norm, bias_gelu, swiglu, weighted_swiglu, bias_residual,
        bias_dropout_residual, causal_softmax, masked_softmax, rope, cross_entropy, embedding_grad, l2_norm,
        token_permutation, attention, grouped_attention, adamw,
    )
}  # fmt: skip
