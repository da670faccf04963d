"""Every kernel of `_native` in three storage types against float64: a line of JSON for each result.

``python -m tests.aarch64.kernels [LIBDNNL]``, with numpy and `_native` on the path and no torch. With the
path of MindSpore's oneDNN, products too. The last line names the kernels that no case called.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Sequence

import numpy as np

from .storage import DTYPES, Array, Case, at, native, wide

CODES = native.kernels
erf = np.vectorize(math.erf)

Pair = tuple[Array, Array]


def sigmoid(x: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def _gelu_tanh(x: Array) -> Pair:
    c = math.sqrt(2.0 / math.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)


def _gelu(x: Array) -> Pair:
    phi = 0.5 * (1 + erf(x / math.sqrt(2.0)))
    return x * phi, phi + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _logistic(factor: float) -> Callable[[Array], Pair]:
    def function(x: Array) -> Pair:
        s = sigmoid(factor * x)
        return x * s, s + factor * x * s * (1 - s)

    return function


def _squared_relu(x: Array) -> Pair:
    return np.maximum(x, 0.0) ** 2, 2 * np.maximum(x, 0.0)


#: An activation's value and slope.
ACTIVATIONS: dict[str, Callable[[Array], Pair]] = {
    "gelu_tanh": _gelu_tanh,
    "gelu": _gelu,
    "quick_gelu": _logistic(1.702),
    "silu": _logistic(1.0),
    "squared_relu": _squared_relu,
}
UNARY: dict[str, Callable[[Array], Array]] = {
    "copy": lambda x: x,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "exp": np.exp,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "neg": np.negative,
    "abs": np.abs,
    "reciprocal": lambda x: 1 / x,
    "square": np.square,
    "relu": lambda x: np.maximum(x, 0.0),
    "erf": erf,
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
}


def activations(k: Case) -> None:
    rows, cols = 9, 67
    for name, function in ACTIVATIONS.items():
        (x, x64), (bias, bias64), (dy, dy64) = k.normal(rows, cols), k.normal(cols), k.normal(rows, cols)
        y, dx, dbias = k.empty(rows, cols), k.empty(rows, cols), k.empty(cols)
        tail = (rows, cols, k.code, k.code)
        k.activation_forward(CODES.ACTIVATIONS[name], at(x), at(bias), at(y), *tail)
        k.activation_backward(CODES.ACTIVATIONS[name], at(dy), at(x), at(bias), at(dx), at(dbias), *tail)
        value, slope = function(x64 + bias64)
        k.check(f"{name}", y, value)
        k.check(f"{name} dx", dx, dy64 * slope)
        k.check(f"{name} dbias", dbias, (dy64 * slope).sum(0))


def gated(k: Case) -> None:
    rows, half = 7, 45
    for name, function in ACTIVATIONS.items():
        (x, x64), (bias, bias64) = k.normal(rows, 2 * half), k.normal(2 * half)
        dy, dy64 = k.normal(rows, half)
        weights, w = k.normal(rows, dtype="float32")
        y, dx, dbias = k.empty(rows, half), k.empty(rows, 2 * half), k.empty(2 * half)
        dweights = np.zeros(rows, np.float32)
        code, tail = CODES.ACTIVATIONS[name], (rows, half, 1.0, math.inf, k.code, k.code)
        k.glu_forward(code, at(x), at(bias), at(weights), at(y), *tail)
        k.glu_backward(code, at(dy), at(x), at(bias), at(weights), at(dx), at(dbias), at(dweights), *tail)
        gate, linear = np.split(x64 + bias64, 2, axis=-1)
        value, slope = function(gate)
        factor, w = linear + 1.0, w[:, None]
        exact = np.concatenate([dy64 * slope * factor * w, dy64 * value * w], axis=-1)
        k.check(f"glu {name}", y, value * factor * w)
        k.check(f"glu {name} dx", dx, exact)
        k.check(f"glu {name} dbias", dbias, exact.sum(0))
        # fp32, of activations that are as precise as the storage type needs.
        k.check(f"glu {name} dweights", dweights, (dy64 * value * factor).sum(-1), k.dtype)


def attention(k: Case) -> None:
    b, s, sk, heads, kv, d, dv = 2, 37, 70, 4, 2, 24, 16
    scale = d**-0.5
    (q, q64), (key, k64), (v, v64) = k.normal(b, s, heads, d), k.normal(b, sk, kv, d), k.normal(b, sk, kv, dv)
    dout, do = k.normal(b, s, heads, dv)
    hidden = (k.random.random((b, sk)) < 0.1).astype(np.uint8)
    hidden[:, 0] = 0
    mask = np.ascontiguousarray(np.broadcast_to(hidden[:, None, None], (b, 1, s, sk)))
    out, lse = k.empty(*dout.shape), k.empty(b, heads, s, dtype="float32")
    dq, dk, dv_ = k.empty(*q.shape), k.empty(*key.shape), k.empty(*v.shape)

    def view(x: Array) -> tuple[int, ...]:
        return (at(x), *(x.strides[i] // x.itemsize for i in range(3)))

    problem = k.AttentionProblem(
        sequences=[(i, 0, s, 0, sk, sk - s) for i in range(b)],
        heads_and_dims=(heads, kv, d, dv),
        scale=scale,
        softcap=0.0,
        window=(-1, 0),
        mask=(at(mask), s * sk, sk, 0),
        drop=0,
        seed=0,
        dtype=k.code,
    )
    views = [view(x) for x in (q, key, v, out)]
    k.attention_forward(problem, *views, at(lse), heads * s, s)
    grads = [view(x) for x in (dq, dk, dv_)]
    k.attention_backward(problem, *views, view(dout), at(lse), 0, heads * s, s, *grads)
    kept = np.empty((heads, s, sk), np.float32)
    k.attention_keep(problem, 0, at(kept))

    wide_k, wide_v = np.repeat(k64, heads // kv, 2), np.repeat(v64, heads // kv, 2)
    scores = np.einsum("bqhd,bkhd->bhqk", q64, wide_k) * scale
    seen = np.tril(np.ones((s, sk), bool), sk - s) & (hidden[:, None, None] == 0)
    scores = np.where(seen, scores, -np.inf)
    p = softmax(scores)
    exact = np.einsum("bhqk,bkhd->bqhd", p, wide_v)
    dp = np.einsum("bqhd,bkhd->bhqk", do, wide_v)
    # The kernel takes sum(dout * out) with the `out` that it was given.
    ds = p * (dp - np.einsum("bqhd,bqhd->bhq", do, wide(out))[..., None]) * scale
    grad_k = np.einsum("bhqk,bqhd->bkhd", ds, q64).reshape(b, sk, kv, -1, d).sum(3)
    grad_v = np.einsum("bhqk,bqhd->bkhd", p, do).reshape(b, sk, kv, -1, dv).sum(3)
    k.check("attention", out, exact)
    k.check("attention lse", lse, np.log(np.exp(scores).sum(-1)))
    k.check("attention dq", dq, np.einsum("bhqk,bkhd->bqhd", ds, wide_k))
    k.check("attention dk", dk, grad_k)
    k.check("attention dv", dv_, grad_v)
    k.check("attention keeps all without dropout", kept, np.ones_like(kept))


def cross_entropy(k: Case) -> None:
    rows, cols, share = 11, 203, 0.1
    logits, x = k.normal(rows, cols, scale=3.0)
    target = k.random.integers(0, cols, rows)
    (peak, loss), grad = np.empty((2, rows), np.float32), np.ones(rows, np.float32)
    sums = np.empty((3, rows), np.float32)
    dlogits = k.empty(rows, cols)
    k.cross_entropy_max(at(logits), at(peak), rows, cols, k.code)
    k.check("cross_entropy max", peak, x.max(-1))
    k.cross_entropy_sums(at(logits), at(peak), at(target), at(sums), rows, cols, 0, True, True, k.code)
    total = sums[0].copy()
    k.cross_entropy_loss(at(sums), at(loss), rows, cols, share)
    k.cross_entropy_grad(
        *(at(logits), at(peak), at(total), at(target), at(grad), at(dlogits)),
        *(rows, cols, 0, 1.0 - share, share / cols, k.code, k.code),
    )
    whole = np.log(np.exp(x).sum(-1))
    hit = x[np.arange(rows), target]
    k.check("cross_entropy", loss, (1 - share) * (whole - hit) + share * (whole - x.mean(-1)))
    exact = softmax(x) - share / cols
    exact[np.arange(rows), target] -= 1 - share
    k.check("cross_entropy dlogits", dlogits, exact)


def dropout(k: Case) -> None:
    rows, cols, scale = 9, 67, 1.0 / 0.9
    (x, x64), (bias, b64), (residual, r64), (dy, dy64) = (
        k.normal(*shape) for shape in ((rows, cols), (cols,), (rows, cols), (rows, cols))
    )
    mask = (k.random.random((rows, cols)) < 0.9).astype(np.uint8)
    y, dx, dbias = k.empty(rows, cols), k.empty(rows, cols), k.empty(cols)
    k.dropout_add_forward(at(x), at(bias), at(residual), at(mask), at(y), rows, cols, scale, k.code)
    k.dropout_backward(at(dy), at(mask), at(dx), at(dbias), rows, cols, scale, k.code)
    k.check("dropout_add", y, r64 + mask * scale * (x64 + b64))
    k.check("dropout_add dx", dx, mask * scale * dy64)
    k.check("dropout_add dbias", dbias, (mask * scale * dy64).sum(0))


def elementwise(k: Case) -> None:
    shape = (5, 67)
    for name, one in UNARY.items():
        x, x64 = k.normal(*shape)
        if "sqrt" in name or name == "reciprocal":
            x = k.narrow(np.abs(x64) + 0.25)
            x64 = wide(x)
        y = k.empty(*shape)
        k.unary(CODES.UNARY[name], [at(x)], [at(y)], [x.size], k.code, k.code)
        k.check(name, y, one(x64))
    for other in DTYPES:  # conversions
        x, x64 = k.normal(*shape)
        y = k.empty(*shape, dtype=other)
        k.unary(CODES.UNARY["copy"], [at(x)], [at(y)], [x.size], k.code, CODES.DTYPES[other])
        k.check(f"to {other}", y, x64)
    for name, two in BINARY.items():
        (x, x64), (z, z64), (row, row64), (column, column64) = (
            k.normal(*sizes) for sizes in (shape, shape, shape[1:], shape[:1])
        )
        y, by_row, by_column = k.empty(*shape), k.empty(*shape), k.empty(*shape)
        k.binary(CODES.BINARY[name], [at(x)], [at(z)], [at(y)], [x.size], 0.5, k.code, k.code)
        k.check(name, y, two(x64, 0.5 * z64))
        for kind, right, result, exact in (
            ("one_row", row, by_row, row64),
            ("one_per_row", column, by_column, column64[:, None]),
        ):
            codes = (*shape, CODES.BROADCASTS[kind], 0.5, k.code, k.code)
            k.binary_broadcast(CODES.BINARY[name], at(x), at(right), at(result), *codes)
            k.check(f"{name} {kind}", result, two(x64, 0.5 * exact))
    (x, x64), (first, f64), (second, s64) = k.normal(*shape), k.normal(*shape), k.normal(*shape)
    for divide, seconds, exact in (
        (False, [at(second)], x64 + 0.3 * f64 * s64),
        (True, [at(second)], x64 + 0.3 * f64 / s64),
        (False, [], x64 + 0.3 * (f64 - x64)),
    ):
        y = k.empty(*shape)
        k.ternary(divide, [at(x)], [at(first)], seconds, [at(y)], [x.size], 0.3, k.code)
        k.check(f"ternary {divide} {len(seconds)}", y, exact)
    k.zero(at(x), x.nbytes)
    k.check("zero", x, np.zeros(shape))


def embedding(k: Case) -> None:
    rows, cols, table_rows = 23, 37, 11
    (grad, g64), (table, t64) = k.normal(rows, cols), k.normal(table_rows, cols, dtype="float32")
    ids = k.random.integers(0, table_rows, rows)
    np.add.at(t64, ids[ids != 3], g64[ids != 3])
    tail = (rows, cols, table_rows, 3, True, k.code, CODES.DTYPES["float32"])
    k.embedding_backward(at(grad), at(ids), 0, at(table), *tail)
    k.check("embedding", table, t64)


def router(k: Case) -> None:
    tokens, experts, topk, scale = 19, 12, 3, 2.5
    lines = np.arange(tokens)[:, None]
    for score in CODES.ROUTER_SCORES:
        logits, x = k.normal(tokens, experts)
        dprobs, dp = k.normal(tokens, experts, dtype="float32")
        probs, chosen = k.empty(tokens, experts), np.zeros((tokens, experts), np.bool_)
        dlogits, code = k.empty(tokens, experts), CODES.ROUTER_SCORES[score]
        sizes = (tokens, experts, topk)
        k.router_forward(code, False, at(logits), 0, at(probs), at(chosen), *sizes, 0, 0, scale, k.code)
        k.router_backward(code, False, at(dprobs), at(logits), at(chosen), at(dlogits), *sizes, scale, k.code)
        best = np.zeros_like(chosen)
        best[lines, np.argsort(-x, axis=-1, kind="stable")[:, :topk]] = True
        if score == "softmax_of_chosen":
            p = softmax(np.where(best, x, -np.inf))
            exact = p * (dp - (p * dp).sum(-1, keepdims=True))
        elif score == "softmax_of_all":
            every = softmax(x)
            p = np.where(best, every, 0.0)
            exact = p * dp - every * (p * dp).sum(-1, keepdims=True)
        else:
            s = sigmoid(x)
            total = np.where(best, s, 0.0).sum(-1, keepdims=True)
            p = np.where(best, s, 0.0) / total
            exact = best * s * (1 - s) * (dp - (p * dp).sum(-1, keepdims=True)) / total
        k.check(f"router {score} choice", chosen.view(np.uint8), best)
        k.check(f"router {score}", probs, scale * p)
        k.check(f"router {score} dlogits", dlogits, scale * exact)


def experts(k: Case) -> None:
    tokens, count, cols = 13, 5, 37
    marks = k.random.random((tokens, count)) < 0.4
    where = np.argwhere(marks.T)
    token, expert = np.empty(len(where), np.int64), np.empty(len(where), np.int64)
    found = k.moe_rows(at(marks), at(token), at(expert), tokens, count, -1, len(where))
    k.check("moe_rows count", np.array([found], np.int64), np.array([len(where)]))
    k.check("moe_rows", np.stack([expert, token], -1), where)
    (x, x64), (weight, w64) = k.normal(tokens, cols), k.normal(len(where), dtype="float32")
    rows, back, dots = k.empty(len(where), cols), k.empty(tokens, cols), k.empty(len(where), dtype="float32")
    k.gather_rows(at(x), at(token), at(weight), at(rows), len(where), cols, tokens, k.code)
    k.check("gather_rows", rows, x64[token] * w64[:, None])
    summed = np.zeros((tokens, cols))
    np.add.at(summed, token, wide(rows) * w64[:, None])
    k.combine_rows(at(rows), at(token), at(weight), at(back), len(where), cols, tokens, k.code)
    k.check("combine_rows", back, summed)
    k.dot_rows(at(rows), at(x), at(token), at(dots), len(where), cols, tokens, k.code)
    k.check("dot_rows", dots, (wide(rows) * x64[token]).sum(-1))


def norm(k: Case) -> None:
    rows, cols, eps = 7, 67, 1e-5
    for center, offset in itertools.product((False, True), (0.0, 1.0)):
        (x, x64), (weight, w64), (bias, b64) = k.normal(rows, cols), k.normal(cols), k.normal(cols)
        (residual, r64), (dy, dy64), (dsum, ds64) = (k.normal(rows, cols) for _ in range(3))
        total, y, (mean, rstd) = k.empty(rows, cols), k.empty(rows, cols), np.empty((2, rows), np.float32)
        dx, dweight, dbias = k.empty(rows, cols), k.empty(cols), k.empty(cols)
        tail = (rows, cols, eps, offset, k.code, k.code)
        places = (at(residual), at(weight), at(bias), at(total), at(y), at(mean), at(rstd))
        k.norm_forward(center, at(x), *places, *tail)
        name = f"{'layer' if center else 'rms'}_norm {offset}"
        k.check(f"{name} sum", total, x64 + r64)
        x64 = wide(total)  # which is normalized
        middle = x64.mean(-1, keepdims=True) * center
        r = 1 / np.sqrt(((x64 - middle) ** 2).mean(-1, keepdims=True) + eps)
        hat, w = (x64 - middle) * r, w64 + offset
        k.check(name, y, hat * w + b64)
        k.check(f"{name} rstd", rstd, r[:, 0])
        k.norm_backward(
            *(center, at(dy), at(total), at(weight), at(dsum), at(mean if center else None), at(rstd)),
            *(at(dx), at(dweight), at(dbias), rows, cols, offset, k.code, k.code),
        )
        g = dy64 * w
        exact = r * (g - hat * (g * hat).mean(-1, keepdims=True) - center * g.mean(-1, keepdims=True))
        k.check(f"{name} dx", dx, exact + ds64)
        k.check(f"{name} dweight", dweight, (dy64 * hat).sum(0))
        k.check(f"{name} dbias", dbias, dy64.sum(0))


def optimizers(k: Case) -> None:
    n, lr, b1, b2, eps, decay, gain = 131, 0.01, 0.9, 0.95, 1e-8, 0.1, 0.5
    (p, p64), (m, m64), (v, v64) = (k.normal(n, dtype="float32") for _ in range(3))
    (g, g64), copy = k.normal(n), k.empty(n)
    v, v64 = np.abs(v), np.abs(v64)
    c1, c2 = 1 - b1**3, 1 - b2**3
    k.adam(
        *([at(p)], [at(g)], [at(m)], [at(v)], [at(copy)], [n], k.code, k.code),
        *(lr, b1, b2, eps, decay, c1, c2, True, False, gain),
    )
    g64 = g64 * gain
    m64, v64 = b1 * m64 + (1 - b1) * g64, b2 * v64 + (1 - b2) * g64**2
    p64 = p64 * (1 - lr * decay) - lr / c1 * m64 / (np.sqrt(v64 / c2) + eps)
    for what, got, exact in (("param", p, p64), ("copy", copy, p64), ("avg", m, m64), ("avg_sq", v, v64)):
        k.check(f"adam {what}", got, exact)

    (p, p64), (m, m64), (g, g64) = k.normal(n, dtype="float32"), k.normal(n, dtype="float32"), k.normal(n)
    options = (lr, 0.9, 0.2, decay, True, False, False, gain)
    k.sgd([at(p)], [at(g)], [at(m)], [at(copy)], [n], k.code, k.code, *options)
    g64 = g64 * gain + decay * p64
    m64 = 0.9 * m64 + 0.8 * g64
    p64 = p64 - lr * (g64 + 0.9 * m64)
    for what, got, exact in (("param", p, p64), ("copy", copy, p64), ("momentum", m, m64)):
        k.check(f"sgd {what}", got, exact)

    (x, x64), y, square = k.normal(n), k.empty(n), np.zeros(1)
    flaws = [k.scale_and_norm([at(x)], [at(y)], at(square), [n], k.code, k.code, 0.3)]
    k.check("scale", y, 0.3 * x64)
    k.check("norm", np.sqrt(square).astype(np.float32), 0.3 * np.sqrt((x64**2).sum(keepdims=True)))
    x[-1] = k.narrow(np.array([np.inf]))[0]
    flaws.append(k.scale_and_norm([at(x)], [], 0, [n], k.code, 0, 1.0))
    k.check("scale finds infinity", np.array(flaws, np.int64), np.array([0, 1]))


def sums(k: Case) -> None:
    rows, cols = 33, 67
    # Of one sign: the error is then relative to the sum.
    x = k.narrow(np.abs(k.normal(rows, cols)[1]))
    x64, whole, last, first = wide(x), k.empty(1), k.empty(rows), k.empty(cols)
    k.sum_all(at(x), at(whole), x.size, 0.5, k.code, k.code)
    k.sum_last(at(x), at(last), rows, cols, 0.5, k.code, k.code)
    k.sum_first(at(x), at(first), rows, cols, 0.5, k.code, k.code)
    k.check("sum_all", whole, 0.5 * x64.sum(keepdims=True)[0])
    k.check("sum_last", last, 0.5 * x64.sum(1))
    k.check("sum_first", first, 0.5 * x64.sum(0))


def rope(k: Case) -> None:
    s, b, h, channels, rotary = 9, 2, 3, 40, 32
    angle = k.random.standard_normal((s, 1, 1, rotary // 2)) * 3
    for layout, code in CODES.ROPE_LAYOUTS.items():
        pairs = np.repeat(angle, 2, -1) if layout == "interleaved" else np.concatenate([angle, angle], -1)
        cos, sin = np.cos(pairs).astype(np.float32), np.sin(pairs).astype(np.float32)
        # The turn of each position as a matrix: the gradient is the product with its transpose.
        source = np.arange(rotary)
        if layout == "to_half":
            source = np.concatenate([source[::2], source[1::2]])
        other, sign = np.arange(rotary) ^ 1, np.where(np.arange(rotary) % 2, 1.0, -1.0)
        if layout != "interleaved":
            other = (np.arange(rotary) + rotary // 2) % rotary
            sign = np.where(np.arange(rotary) < rotary // 2, -1.0, 1.0)
        turn = np.zeros((s, channels, channels))
        turn[:, range(rotary, channels), range(rotary, channels)] = 1.0
        turn[:, range(rotary), source] = wide(cos).reshape(s, rotary)
        turn[:, range(rotary), source[other]] += sign * wide(sin).reshape(s, rotary)
        for backward in (False, True):
            (x, x64), y = k.normal(s, b, h, channels), k.empty(s, b, h, channels)
            strides = (b * h * channels, h * channels, channels)
            sizes = (s, b, h, channels, rotary, *strides, *strides, rotary, 0, k.code)
            k.rope(code, backward, at(x), at(y), at(cos), at(sin), *sizes)
            exact = np.einsum("sji,sbhj->sbhi" if backward else "sij,sbhj->sbhi", turn, x64)
            k.check(f"rope {layout}{' backward' if backward else ''}", y, exact)


def softmaxes(k: Case) -> None:
    b, h, q, n, scale = 2, 3, 5, 37, 0.7
    (x, x64), (dy, dy64) = k.normal(b, h, q, n, scale=3.0), k.normal(b, h, q, n)
    mask = (k.random.random((b, 1, q, n)) < 0.3).astype(np.uint8)
    mask[..., 0] = 0
    masked = (b * h * q, n, h, q, q * n, 0, n, scale, k.code)
    plain = (b * h * q, n, h, q, 0, 0, 0, scale, k.code)
    y, dx = k.empty(*x.shape), k.empty(*x.shape)
    k.softmax_forward(False, False, at(x), at(mask), at(y), *masked)
    k.check("softmax", y, softmax(np.where(mask, -np.inf, scale * x64)))
    k.softmax_backward(False, at(dy), at(y), at(mask), at(dx), *masked)
    y64 = wide(y)
    k.check("softmax dx", dx, scale * y64 * (dy64 - (y64 * dy64).sum(-1, keepdims=True)))
    k.softmax_forward(False, True, at(x), 0, at(y), *plain)
    causal = np.tril(np.ones((q, n), bool), n - q)
    k.check("softmax causal", y, softmax(np.where(causal, scale * x64, -np.inf)))
    k.softmax_forward(True, False, at(x), 0, at(y), *plain)
    k.check("log_softmax", y, np.log(softmax(scale * x64)))
    k.softmax_backward(True, at(dy), at(y), 0, at(dx), *plain)
    exact = scale * (dy64 - np.exp(wide(y)) * dy64.sum(-1, keepdims=True))
    k.check("log_softmax dx", dx, exact)


def copies(k: Case) -> None:
    for item in (1, 2, 4, 8):
        x = k.random.integers(0, 100, (17, 5, 70)).astype(f"u{item}")
        turned = x.transpose(2, 0, 1)
        y = np.zeros(turned.shape, x.dtype)
        k.copy_to_contiguous(at(x), at(y), list(y.shape), [n // item for n in turned.strides], item)
        k.check(f"copy of {item} bytes", y.astype(np.int64), turned)
    x, y = k.random.integers(0, 100, (5, 70)).astype(np.uint8), np.zeros((5, 30), np.uint8)
    k.copy_rows(at(x), at(y), 5, 30, 70, 30)
    k.check("copy_rows", y, x[:, :30])


def products(k: Case, library: str) -> None:
    k.gemm_load(library)
    m, n, d = 19, 33, 45
    for turn_a, turn_b in itertools.product((False, True), repeat=2):
        a, a64 = k.normal(*((d, m) if turn_a else (m, d)))
        b, b64 = k.normal(*((n, d) if turn_b else (d, n)))
        (c, c64), turns = k.normal(m, n, dtype="float32"), (turn_a, turn_b)
        lead = (a.shape[1], b.shape[1], n)
        tail = (1, 0, 0, 0, 0.5, 2.0, False, k.code, CODES.DTYPES["float32"])
        k.gemm(at(a), at(b), at(c), m, n, d, *lead, *turns, *tail)
        exact = 0.5 * (a64.T if turn_a else a64) @ (b64.T if turn_b else b64) + 2 * c64
        k.check(f"gemm {turn_a:d}{turn_b:d}", c, exact)


#: Everything that is called; products need MindSpore's oneDNN.
CASES = (
    *(activations, gated, attention, cross_entropy, dropout, elementwise, embedding, router, experts),
    *(norm, optimizers, sums, rope, softmaxes, copies),
)
#: Names of `_native.kernels` that compute nothing.
SETTINGS = {"set_threads", "threads", "force_isa", "isa", "best_isa", "AttentionView"}
SETTINGS |= {"gemm_widens_bfloat16", "gemm_widen_bfloat16"}


def main(arguments: Sequence[str]) -> int:
    called: set[str] = set()
    native.kernels.set_threads(2)
    for dtype in DTYPES:
        case = Case(dtype, called)
        for function in CASES:
            function(case)
        if arguments:
            products(case, arguments[0])
        for what, error, limit in case.results:
            print(json.dumps({"dtype": dtype, "what": what, "error": error, "limit": limit}))
    names = {name for name, value in vars(native.kernels).items() if callable(value) and name[0] != "_"}
    print(json.dumps({"not called": sorted(names - called - SETTINGS), "isa": native.kernels.isa()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
