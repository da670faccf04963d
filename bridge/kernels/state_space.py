"""Mamba-2's state-space layer (Dao & Gu 2024) in torch operators: convolution, scan, one step, gated norm.

State of one head, (p, n): h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T; its result: y_t = h_t C_t + D x_t. Sums
are in fp32 (float64 for float64 inputs), results in the dtype of x. Gradients of the convolution and the scan
are autograd's, of the function made once more: its decays and weights are not kept until backward.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from mindspeed_ms.kernels.operator import Gradient, Operator, fake_like, gradients
from torch.nn import functional

Tensor = torch.Tensor


def _wide(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [t if t.dtype == torch.float64 else t.float() for t in tensors]


def causal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    silu: bool = False,
    before: torch.Tensor | None = None,
    sequence: torch.Tensor | None = None,
) -> torch.Tensor:
    """Depthwise convolution of x (b, d, l) with weight (d, w) over a channel's last w values.

    `before` (b, d, w - 1) are the values in front of x, by default zeros; `sequence`, int (b, l), numbers the
    sequences that lie one after the other in x: none sees another's values.
    """
    return _CAUSAL_CONV(x, weight, bias, before, sequence, silu)


def _causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None, sequence: Tensor | None, silu: bool
) -> Tensor:
    (wide, taps), width, length = _wide(x, weight), weight.shape[1], x.shape[2]
    padded = functional.pad(wide, (width - 1, 0))
    if before is not None:
        padded = torch.cat((before.to(wide.dtype), wide), dim=2)
    out = torch.zeros_like(wide) if bias is None else bias.to(wide.dtype).unsqueeze(1).expand_as(wide)
    for tap in range(width):
        part = padded[..., tap : tap + length] * taps[:, tap].unsqueeze(1)
        if sequence is not None and (back := width - 1 - tap):
            same = functional.pad(sequence, (back, 0), value=-1)[:, :length] == sequence
            part = part.masked_fill(~same.unsqueeze(1), 0.0)  # not times zero: padding may hold NaN
        out = out + part
    return (functional.silu(out) if silu else out).to(x.dtype).contiguous()


def last_values(x: torch.Tensor, cu_seqlens: torch.Tensor, width: int) -> torch.Tensor:
    """Last `width` tokens of each packed sequence in x (tokens, d): (sequences, d, width), zeros in front."""
    tails = [x[max(begin, end - width) : end].t() for begin, end in itertools.pairwise(cu_seqlens.tolist())]
    return torch.stack([functional.pad(tail, (width - tail.shape[1], 0)) for tail in tails])


def scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    chunk: int,
    *,
    skip: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    sequence: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """All y (b, l, h, p), and the state (b, h, p, n) behind the last, in fp32.

    x: (b, l, h, p); dt: (b, l, h), positive; a: (h,), negative; b, c: (b, l, groups, n) with h a multiple of
    groups; skip: D, (h,) or (h, p); state: the one in front, by default zeros; `sequence` as in
    :func:`causal_conv`: each is scanned by itself. `chunk` tokens at a time are multiplied as matrices.
    """
    return _SCAN(x, dt, a, b, c, skip, state, sequence, chunk)


def _scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None,
    state: Tensor | None,
    sequence: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):  # sums are fp32
        if sequence is not None:
            return _scan_packed(x, dt, a, b, c, skip, state, sequence, chunk)
        return _scan_chunks(x, dt, a, b, c, skip, state, chunk)


def _scan_chunks(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None,
    state: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    heads = x.shape[2] // b.shape[2]
    wide, dt, a, b, c = _wide(x, dt, a, b, c)
    batch, _, many, channels = x.shape
    h = wide.new_zeros(batch, many, channels, b.shape[-1]) if state is None else state.to(wide.dtype)
    results = []
    for begin in range(0, x.shape[1], chunk):
        at = slice(begin, begin + chunk)
        decay = (dt[:, at] * a).cumsum(1).transpose(1, 2)  # (b, h, l): logarithm, from the chunk's begin
        between = decay.unsqueeze(3) - decay.unsqueeze(2)
        future = torch.ones(between.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        ended = decay[..., -1:] - decay
        values = (wide[:, at] * dt[:, at].unsqueeze(-1)).transpose(1, 2)  # (b, h, l, p)
        keys, queries = (t[:, at].repeat_interleave(heads, 2).transpose(1, 2) for t in (b, c))  # (b, h, l, n)
        weights = queries @ keys.mT * between.masked_fill(future, float("-inf")).exp()
        y = weights @ values + (queries @ h.mT) * decay.exp().unsqueeze(-1)
        h = h * decay[..., -1:, None].exp() + (values * ended.exp().unsqueeze(-1)).mT @ keys
        results.append(y.transpose(1, 2))
    y = torch.cat(results, dim=1)
    if skip is not None:
        y = y + wide * (skip.unsqueeze(-1) if skip.dim() == 1 else skip).to(y.dtype)
    return y.to(x.dtype).contiguous(), h.contiguous()


def _scan_packed(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None,
    state: torch.Tensor | None,
    sequence: torch.Tensor,
    chunk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequence by sequence: a mask of weights would let NaN in one's padding through to the others."""
    rows, ends = [], []
    for row, numbers in enumerate(sequence.tolist()):
        lengths = [len(list(run)) for _, run in itertools.groupby(numbers)]
        at, parts, h = slice(row, row + 1), [], None if state is None else state[row : row + 1]
        for part in zip(*(t[at].split(lengths, dim=1) for t in (x, dt, b, c)), strict=True):
            y, last = _scan_chunks(part[0], part[1], a, part[2], part[3], skip, h, chunk)
            parts.append(y)
            h = None
        rows.append(torch.cat(parts, dim=1))
        ends.append(last)
    return torch.cat(rows), torch.cat(ends)


def _fake_scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    batch, _length, heads, width = x.shape
    return fake_like(x), torch.empty(batch, heads, width, b.shape[-1], dtype=wide, device=x.device)


def _differentiable(
    schema: str, results: str, function: Callable[..., Any], fake: Callable[..., Any], inputs: int
) -> Operator:
    """An operator whose first `inputs` arguments get gradients; then come `sequence` and one option.

    `schema` gives the arguments, `results` what it returns: one tensor or two.
    """
    name, _, arguments = schema.partition("(")
    count = results.count("Tensor")
    grads = [f"grad{i}" for i in range(count)]

    def backward(*args: Any) -> tuple[Tensor, ...]:
        given, tensors, rest = args[:count], args[count : count + inputs], args[count + inputs :]
        found = gradients(lambda *leaves: function(*leaves, *rest), tensors, given)
        # Without an effect on the results that have gradients, a tensor's is zeros.
        return tuple(
            torch.zeros(0, device=tensors[0].device)
            if tensor is None
            else fake_like(tensor).zero_()
            if grad is None
            else grad.contiguous()
            for tensor, grad in zip(tensors, found, strict=True)
        )

    def fake_backward(*args: Any) -> tuple[Tensor, ...]:
        tensors = args[count : count + inputs]
        return tuple(
            torch.empty(0, device=tensors[0].device) if tensor is None else fake_like(tensor)
            for tensor in tensors
        )

    operator = Operator(
        f"{name}_backward({''.join(f'Tensor? {grad}, ' for grad in grads)}{arguments} "
        f"-> ({', '.join(['Tensor'] * inputs)})",
        decides=("x",),
        fake=fake_backward,
        composite=backward,
    )

    def save(ctx: Any, args: tuple[Any, ...], _: Any) -> None:
        ctx.save_for_backward(*args[:-1])
        ctx.option = args[-1]

    def of_all(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(grad is None for grad in grads):
            return (None,) * (inputs + 2)
        found = operator(*grads, *ctx.saved_tensors, ctx.option)
        wanted = zip(found, ctx.needs_input_grad, strict=False)
        return *(grad if needed else None for grad, needed in wanted), None, None

    return Operator(
        f"{schema} -> {results}",
        decides=("x",),
        fake=fake,
        composite=function,
        gradient=Gradient(save, of_all),
    )


_CAUSAL_CONV = _differentiable(
    "causal_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? before, Tensor? sequence, bool silu)",
    "Tensor",
    _causal_conv,
    lambda x, *_: fake_like(x),
    inputs=4,
)

_SCAN = _differentiable(
    "state_space_scan(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor? skip, Tensor? state, "
    "Tensor? sequence, SymInt chunk)",
    "(Tensor y, Tensor last)",
    _scan,
    _fake_scan,
    inputs=7,
)


def scan_step(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None = None,
) -> torch.Tensor:
    """y (b, h, p) of one more token; writes `state` (b, h, p, n) in place.

    x, dt: (b, h, p); a: (h, p, n); b, c: (b, groups, n); skip: D, (h, p).
    """
    heads = x.shape[1] // b.shape[1]
    old, wide, dt, a, b, c = _wide(state, x, dt, a, b, c)
    b, c = (t.repeat_interleave(heads, 1).unsqueeze(2) for t in (b, c))
    new = old * (dt.unsqueeze(-1) * a).exp() + (dt * wide).unsqueeze(-1) * b
    state.copy_(new)
    y = (new * c).sum(-1)
    return (y if skip is None else y + wide * skip.to(y.dtype)).to(x.dtype)


def gated_rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    gate: torch.Tensor | None = None,
    *,
    eps: float = 1e-5,
    group: int | None = None,
    norm_first: bool = True,
) -> torch.Tensor:
    """RMSNorm of x (..., d) over each `group` of channels, times silu(gate) after it or before it."""
    (wide, scale), gate = _wide(x, weight), None if gate is None else functional.silu(_wide(gate)[0])
    if gate is not None and not norm_first:
        wide = wide * gate
    parts = wide.unflatten(-1, (-1, group or x.shape[-1]))
    out = (parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + eps)).flatten(-2) * scale
    return (out if gate is None or not norm_first else out * gate).to(x.dtype)
