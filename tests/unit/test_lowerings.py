"""Every lowering in route strict, on MindSpore's own kernels: values against torch CPU in float64, dtypes and
shapes against torch CPU in the same dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mindspeed_ms.patch  # noqa: F401 - switches the device on
import pytest
import torch
import torch.nn.functional as F
from mindspeed_ms import _runtime
from mindspeed_ms.ops import registry
from mindspeed_ms.routes import coverage, route

aten = torch.ops.aten


@dataclass(frozen=True)
class Case:
    name: str
    run: Callable[..., object]
    """Takes the inputs, on whichever device and dtype."""
    inputs: str = "xy"
    """x, y: (6, 8) normal; p: (6, 8) in 0.1 to 3; i, j: int64 in 0 to 5; m: bool; b: (3, 4, 5), c: (3, 5, 4)
    normal."""
    rtol: float = 2e-6
    atol: float = 2e-6


def nll_loss_gradient(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    x = x.detach().requires_grad_()
    F.nll_loss(x, index[:, 0], ignore_index=2).backward()
    return x.grad


DIVISIONS = ("floor_divide", "remainder", "fmod")
EXP = {"rtol": 1e-5, "atol": 1e-6}
"""MindSpore's float32 exp is right to 5e-6 (fenced), and what is computed from it, too."""

CASES = [
    *(
        Case(n, getattr(torch, n), "x")
        for n in ("abs", "ceil", "cos", "erf", "floor", "neg", "sign", "sin", "square")
    ),
    *(Case(n, getattr(torch, n), "x") for n in ("isfinite", "isinf", "isnan", "relu", "round", "trunc")),
    *(Case(n, getattr(torch, n), "p") for n in ("log1p", "reciprocal", "rsqrt", "sqrt")),
    *(Case(n, getattr(torch, n), "x", **EXP) for n in ("exp", "sigmoid")),
    Case("log", torch.log, "p", atol=5e-6),
    Case("expm1", torch.expm1, "x", rtol=1e-5, atol=1e-6),
    Case("tanh", torch.tanh, "x", atol=1e-4),
    Case("silu", F.silu, "x", **EXP),
    Case("logical_not", torch.logical_not, "m"),
    Case("bitwise_not", torch.bitwise_not, "m"),
    *(Case(n, getattr(torch, n), "mn") for n in ("logical_and", "logical_or", "bitwise_and", "bitwise_or")),
    *(
        Case(n, getattr(torch, n), "xy")
        for n in ("eq", "ne", "lt", "le", "gt", "ge", "maximum", "minimum", "mul")
    ),
    *(
        Case(f"{n} number", lambda x, n=n: getattr(torch, n)(x, 0.5), "x")
        for n in ("eq", "ne", "lt", "le", "gt", "ge")
    ),
    *(
        Case(f"{n} int", lambda i, n=n: getattr(torch, n)(i, 3), "i")
        for n in ("eq", "ne", "lt", "le", "gt", "ge")
    ),
    Case("div", torch.div, "xp"),
    Case("div number", lambda x: x / 3, "x"),
    Case("number div", lambda p: 3 / p, "p"),
    Case("add alpha", lambda x, y: torch.add(x, y, alpha=0.5)),
    Case("add broadcast", lambda x, y: x + y[:1]),
    Case("add rows", lambda x, y: x[:, :1] + y[:1]),
    Case("sub alpha", lambda x, y: torch.sub(x, y, alpha=2)),
    Case("number minus", lambda x: 1 - x, "x"),
    Case("pow 2", lambda x: x**2, "x"),
    Case("pow 3", lambda p: p**3.0, "p", rtol=1e-5),
    Case("number pow", lambda p: 10000.0**p, "p", rtol=1e-5),
    Case("pow tensor", torch.pow, "px", rtol=1e-5),
    Case("clamp", lambda x: x.clamp(-0.5, 0.5), "x"),
    Case("clamp_min", lambda x: torch.clamp_min(x, 0.1), "x"),
    Case("clamp_max", lambda x: torch.clamp_max(x, 0.1), "x"),
    Case("masked_fill tensor", lambda x, m: x.masked_fill(m, x.new_tensor(3.0)), "xm"),
    Case("clamp min", lambda x: x.clamp(min=0.1), "x"),
    Case("clamp int", lambda i: i.clamp(1, 3), "i"),
    Case("where", torch.where, "mxy"),
    Case("where number", lambda m, x: torch.where(m, x, 0.0), "mx"),
    Case("where broadcast", lambda m, x, y: torch.where(m[:, :1], x, y[:1]), "mxy"),
    Case("masked_fill", lambda x, m: x.masked_fill(m, -1e4), "xm"),
    Case("masked_fill -inf", lambda x, m: x.masked_fill(m, float("-inf")), "xm"),
    Case("masked_fill broadcast", lambda x, m: x.masked_fill(m[:1], 2), "xm"),
    Case("addcmul", lambda x, y, p: torch.addcmul(x, y, p, value=0.5), "xyp"),
    Case("addcdiv", lambda x, y, p: torch.addcdiv(x, y, p, value=-0.1), "xyp"),
    Case("lerp", lambda x, y: torch.lerp(x, y, 0.1)),
    Case("lerp far", lambda x, y: torch.lerp(x, y, 0.9)),
    Case("sigmoid_backward", lambda x, p: aten.sigmoid_backward(x, p / 4), "xp"),
    Case("tanh_backward", lambda x, p: aten.tanh_backward(x, p / 4), "xp"),
    Case("silu_backward", aten.silu_backward, "xy", **EXP),
    Case("threshold_backward", lambda x, y: aten.threshold_backward(x, y, 0)),
    Case("isclose", torch.isclose),
    Case("native_dropout_backward", lambda x, m: aten.native_dropout_backward(x, m, 2.0), "xm"),
    Case("mul by bool", lambda x, m: x * m, "xm"),
    Case("zeros", lambda x: torch.zeros_like(x), "x"),
    Case("full", lambda x: torch.full_like(x, 2.5), "x"),
    # matrix products, in every layout of the operands
    Case("mm", lambda x, y: x @ y.t()),
    Case("mm transposed left", lambda x, y: x.t() @ y),
    Case("mm both transposed", lambda b, c: b[0].t() @ c[0].t(), "bc"),
    Case("mm slices", lambda x, y: x[:, 1:5] @ y[:4, 2:7]),
    Case("bmm", torch.bmm, "bc"),
    Case("bmm transposed", lambda b, c: torch.bmm(b.transpose(1, 2), c.transpose(1, 2)), "bc"),
    Case("bmm heads", lambda b, c: torch.bmm(b.transpose(0, 1), c.permute(2, 1, 0)), "bc"),
    Case("matmul 3d", lambda b, c: torch.matmul(b, c[0]), "bc"),
    Case("linear", lambda x, y: F.linear(x, y, y[:, 0])),
    Case("addmm", lambda x, y: torch.addmm(y[:, 0], x, y.t(), beta=0.5, alpha=2)),
    Case("baddbmm", lambda b, c: torch.baddbmm(b[:, :1, :4], b, c, beta=0.5, alpha=0.25), "bc"),
    Case("baddbmm beta 0", lambda b, c: torch.baddbmm(b[:, :, :4] * float("nan"), b, c, beta=0), "bc"),
    Case("dot", lambda x, y: torch.dot(x[0], y[0])),
    # reductions
    *(Case(f"sum {d}", lambda x, d=d: x.sum(d), "x", atol=4e-6) for d in (0, 1, -1, (0, 1), None)),
    Case("sum keepdim", lambda b: b.sum((0, 2), keepdim=True), "b", atol=4e-6),
    Case("sum all", torch.sum, "x", atol=4e-6),
    Case("sum int", torch.sum, "i"),
    Case("sum bool", torch.sum, "m"),
    Case("sum bool dim", lambda m: m.sum(0), "m"),
    Case("mean", torch.mean, "x"),
    Case("mean dim", lambda x: x.mean(-1, keepdim=True), "x"),
    *(
        Case(f"{n} dim", lambda x, n=n: getattr(x, n)(1, True), "x")
        for n in ("amax", "amin", "max", "min", "argmax")
    ),
    *(
        Case(f"{n} all", lambda x, n=n: getattr(x, n)(), "x")
        for n in ("amax", "amin", "max", "min", "argmax")
    ),
    *(Case(n, getattr(torch, n), "m") for n in ("all", "any")),
    *(Case(f"{n} dim", lambda m, n=n: getattr(m, n)(1), "m") for n in ("all", "any")),
    Case("cumsum", lambda x: x.cumsum(1), "x", atol=4e-6),
    Case("cumsum int", lambda i: i.cumsum(0), "i"),
    Case("norm", lambda x: x.norm(), "x"),
    Case("norm 1", lambda x: torch.linalg.vector_norm(x, 1), "x", rtol=4e-6),
    Case("norm inf", lambda x: torch.linalg.vector_norm(x, float("inf")), "x"),
    Case("norm dim", lambda x: torch.linalg.vector_norm(x, 2, dim=1), "x"),
    Case("sort", lambda x: x.sort(1, descending=True), "x"),
    *(
        [
            Case("stable sort", lambda i: i.sort(stable=True, dim=1), "i"),
            Case("roll", lambda x: (x.roll(1, 0), x.roll((-1, 2), (0, 1)), x.roll(3)), "x"),
            Case("nll_loss_backward", nll_loss_gradient, "xi"),
            *(Case(n, getattr(torch, n), "xp") for n in DIVISIONS),
            *(Case(f"{n} int", lambda i, n=n: getattr(torch, n)(i - 2, 3), "i") for n in DIVISIONS),
            *(Case(f"{n} number", lambda x, n=n: getattr(torch, n)(x, -0.75), "x") for n in DIVISIONS),
            Case("remainder of number", lambda p: torch.remainder(2.5, p), "p"),
            Case("remainder of int", lambda i: torch.remainder(-7, i + 1), "i"),
            Case("div int", lambda i, j: i / (j + 1), "ij"),
            *(
                Case(f"div {m}", lambda x, p, m=m: torch.div(x, p, rounding_mode=m), "xp")
                for m in ("floor", "trunc", None)
            ),
            Case("pow int", lambda i: (i**2, i**3), "i"),
            *(
                Case(f"bitwise {t}", lambda a, b: (a & b, a | b, a ^ b, ~a, a & 1, 6 ^ a), t)
                for t in ("ij", "mn")
            ),
            *(Case(f"logical_xor {t}", torch.logical_xor, t) for t in ("mn", "ij", "xp")),
            Case("clamp tensors", lambda x, y, p: torch.clamp(x, -p, y.abs()), "xyp"),
            Case("clamp_min tensor", lambda x, y: torch.clamp(x, min=y[:1])),
            Case("clamp_max tensor", lambda x, y: torch.clamp(x, max=y[:, :1])),
            *(Case(f"{n} tensor", getattr(torch, n)) for n in ("clamp_min", "clamp_max")),
            Case("lerp tensor", torch.lerp, "xyp"),
            Case("isclose int", torch.isclose, "ij"),
            Case("equal", lambda x, y: x.new_tensor([torch.equal(x, y), torch.equal(x, x + 0)])),
            Case("argmin", lambda x: (x.argmin(), x.argmin(1, True), x.argmin(0)), "x"),
            Case("flip", lambda x: (x.flip(0), x.flip(-1, 0)), "x"),
            *(Case(f"prod {t}", lambda a: (a.prod(), a.prod(1, keepdim=True)), t) for t in "pim"),
            *(
                Case(
                    n,
                    lambda x, n=n: (getattr(torch, n)(x), getattr(torch, n)(x, 0, correction=0)),
                    "x",
                    rtol=4e-6,
                )
                for n in ("var", "std", "var_mean", "std_mean")
            ),
            *(
                Case(f"{n} dims", lambda b, n=n: getattr(torch, n)(b > 0, (0, 2), True), "b")
                for n in ("all", "any")
            ),
            *(
                Case(f"{n} bool", lambda m, n=n: (getattr(m, n)(), getattr(m, n)(0)), "m")
                for n in ("max", "min")
            ),
            Case("norm 3", lambda x: torch.linalg.vector_norm(x, 3, dim=(0, 1)), "x", rtol=4e-6),
            *(
                Case(
                    f"addbmm {b}",
                    lambda b, c, beta=b: torch.addbmm(b[0, :, :4], b, c, beta=beta, alpha=2),
                    "bc",
                )
                for b in (0, 0.5)
            ),
            Case("gather bool", lambda m, i: m.gather(1, i), "mi"),
            Case(
                "scatter bool",
                lambda m, n, i: (m.scatter(1, i[:, :1], n[:, :1]), m.scatter(1, i, True)),
                "mni",
            ),
            Case("index mask", lambda x, m: x[m], "xm"),
            Case("index mask of rows", lambda x, m: x[m[:, 0]], "xm"),
            Case(
                "index_put mask of values",
                lambda x, m: (
                    x.clone().index_put_((m,), x[m] * 2),
                    x.clone().index_put_((m[:, 0],), x[0]),
                    x.clone().index_put_((m,), x[m], accumulate=True),
                ),
                "xm",
            ),
            Case("triu bool", lambda m: m.triu(1), "m"),
            Case("masked_scatter rows", lambda x, m, y: x.masked_scatter(m[:1], y), "xmy"),
        ]
        if _runtime.on_ascend()
        else []
    ),  # the CPU backend has none
    Case("topk", lambda x: x.topk(3, 1), "x"),
    Case("bincount", lambda i: i.reshape(-1).bincount(minlength=9), "i"),
    # networks
    Case("softmax", lambda x: x.softmax(-1), "x", **EXP),
    Case("softmax 0", lambda x: x.softmax(0), "x", **EXP),
    Case("softmax_backward", lambda x, p: aten._softmax_backward_data(x, p, -1, x.dtype), "xp", atol=1e-5),
    Case("log_softmax", lambda x: x.log_softmax(-1), "x", rtol=1e-5, atol=1e-5),
    Case(
        "log_softmax_backward",
        lambda x, y: aten._log_softmax_backward_data(x, y, -1, x.dtype),
        rtol=1e-5,
        atol=1e-5,
    ),
    *(Case(f"gelu {a}", lambda x, a=a: F.gelu(x, approximate=a), "x") for a in ("none", "tanh")),
    *(
        Case(
            f"gelu_backward {a}",
            lambda x, y, a=a: aten.gelu_backward(x, y, approximate=a),
            rtol=1e-5,
            atol=4e-6,
        )
        for a in ("none", "tanh")
    ),
    Case("layer_norm", lambda x, y: aten.native_layer_norm(x, (8,), y[0], y[1], 1e-5)),
    Case("layer_norm 2d", lambda b: aten.native_layer_norm(b, (4, 5), None, None, 1e-5), "b"),
    Case(
        "layer_norm_backward",
        lambda x, y, p: aten.native_layer_norm_backward(
            x, y, (8,), y[:, :1].contiguous(), p[:, :1].contiguous(), p[0], p[1], (True, True, True)
        ),
        "xyp",
        rtol=1e-5,
        atol=1e-5,
    ),
    Case("embedding", lambda x, i: F.embedding(i, x), "xi"),
    Case("embedding_backward", lambda i, x: aten.embedding_dense_backward(x, i[:, 0], 5, -1, False), "ix"),
    *(
        Case(f"mse_loss {r}", lambda x, y, r=r: F.mse_loss(x, y, reduction=r), rtol=4e-6)
        for r in ("none", "mean", "sum")
    ),
    *(
        Case(f"nll_loss {r}", lambda x, i, r=r: F.nll_loss(x, i[:, 0], reduction=r, ignore_index=2), "xi")
        for r in ("mean", "sum")
    ),
    Case("cross_entropy", lambda x, i: F.cross_entropy(x, i[:, 0]), "xi", rtol=1e-5, atol=1e-5),
    Case("rms_norm", lambda x, y: F.rms_norm(x, (8,), y[0], 1e-5), rtol=4e-6),
    # indexing
    Case("index_select", lambda x, i: x.index_select(0, i[:, 0]), "xi"),
    Case("index", lambda x, i: x[i[:, 0]], "xi"),
    Case("index negative", lambda x, i: x[i[:, 0] - 6], "xi"),
    Case("index second", lambda x, i: x[:, i[0]], "xi"),
    Case("index two", lambda x, i, j: x[i, j], "xij"),
    Case("index_put", lambda x, y: x.clone().index_put_((torch.tensor([2, 0, 1]).to(x.device),), y[:3])),
    Case(
        "index_put add",
        lambda x, i, y: x.clone().index_put_((i[:, 0],), y, accumulate=True),
        "xiy",
        atol=4e-6,
    ),
    Case("index_put mask", lambda x, m: x.clone().index_put_((m,), x.new_tensor(3.0)), "xm"),
    Case("gather", lambda x, i: x.gather(1, i), "xi"),
    Case("scatter", lambda x, y: x.scatter(1, y.argsort(1), y)),
    Case("scatter number", lambda x, i: x.scatter(1, i[:, :1], 1.5), "xi"),
    Case("masked_select", torch.masked_select, "xm"),
    Case("masked_scatter", lambda x, m, y: x.masked_scatter(m, y), "xmy"),
    Case("masked_scatter in place", lambda x, m, y: x.clone().masked_scatter_(m, y), "xmy"),
    Case("masked_scatter of none", lambda x, m, y: x.masked_scatter(m & ~m, y), "xmy"),
    Case("index_add", lambda x, i, y: x.index_add(0, i[:, 0], y), "xiy", atol=4e-6),
    Case("index_add alpha", lambda x, i, y: x.clone().index_add_(0, i[:, 0], y, alpha=0.5), "xiy"),
    Case("scatter_add", lambda x, i, y: x.scatter_add(1, i, y), "xiy", atol=4e-6),
    Case("one_hot", lambda i: F.one_hot(i, 6), "i"),
    *(Case(f"cat {d}", lambda x, y, d=d: torch.cat([x, y, x], d)) for d in (0, 1, -1)),
    Case("cat one", lambda x: torch.cat([x]), "x"),
    Case("stack", lambda x, y: torch.stack([x, y], 1)),
    *(
        Case(f"{n} {d}", lambda x, n=n, d=d: getattr(x, n)(d), "x")
        for n in ("tril", "triu")
        for d in (-1, 0, 2)
    ),
    Case("nonzero", torch.nonzero, "m"),
    # lists
    Case("foreach_add", lambda x, y: torch._foreach_add([x, y], [y, x], alpha=2)),
    Case("foreach_mul", lambda x, y: torch._foreach_mul([x, y], 0.5)),
    Case("foreach_norm", lambda x, y: torch._foreach_norm([x, y])),
    Case("foreach_addcdiv", lambda x, y, p: torch._foreach_addcdiv([x, y], [y, x], [p, p], -0.1), "xyp"),
    Case("foreach_lerp", lambda x, y: torch._foreach_lerp([x], [y], 0.1)),
    Case("foreach_sqrt", lambda p: torch._foreach_sqrt([p, p]), "p"),
]


def make(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(ord(kind))
    if kind in "xy":
        return torch.randn(6, 8, generator=generator)
    if kind == "p":
        return torch.rand(6, 8, generator=generator) * 2.9 + 0.1
    if kind in "ij":
        return torch.randint(0, 6, (6, 8), generator=generator)
    if kind in "mn":
        return torch.rand(6, 8, generator=generator) > 0.5
    return torch.randn(*{"b": (3, 4, 5), "c": (3, 5, 4)}[kind], generator=generator)


def flatten(result: object) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else [t for part in result for t in flatten(part)]


def check(
    case: Case,
    tensors: list[torch.Tensor],
    lend: Callable[[torch.Tensor], torch.Tensor],
    mode: str = "strict",
) -> None:
    exact = flatten(case.run(*(t.double() if t.is_floating_point() else t for t in tensors)))
    same = flatten(case.run(*tensors))
    with route(mode):
        found = flatten(case.run(*map(lend, tensors)))
    assert len(found) == len(exact)
    for ours, theirs, wanted in zip(found, same, exact, strict=True):
        assert ours.device.type == "npu"
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        torch.testing.assert_close(
            ours.cpu().to(wanted.dtype), wanted, rtol=case.rtol, atol=case.atol, equal_nan=True
        )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values(case: Case) -> None:
    check(case, [make(kind) for kind in case.inputs], lambda t: t.to("npu"))


def transposed(t: torch.Tensor) -> torch.Tensor:
    """The same values on npu, in the memory of a larger transposed tensor."""
    base = torch.empty(*(size + 1 for size in reversed(t.shape)), dtype=t.dtype, device="npu")
    view = base.permute(*reversed(range(t.dim())))[tuple(slice(1, None) for _ in t.shape)]
    view.copy_(t)
    return view


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values_of_strided_inputs(case: Case) -> None:
    check(case, [make(kind) for kind in case.inputs], transposed)


@pytest.mark.parametrize("dtype", [torch.bfloat16 if _runtime.on_ascend() else torch.float64, torch.float16])
@pytest.mark.parametrize(
    "name", ["add.Tensor", "mul.Tensor", "mm", "_softmax", "sum.dim_IntList", "where.self"]
)
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    runs = {
        "add.Tensor": lambda x, y: x + y,
        "mul.Tensor": lambda x, y: x * y,
        "mm": lambda x, y: x @ y.t(),
        "_softmax": lambda x, y: x.softmax(-1),
        "sum.dim_IntList": lambda x, y: x.sum(1),
        "where.self": lambda x, y: torch.where(x > 0, x, y),
    }
    x, y = (make(kind).to(dtype) for kind in "xy")
    with route("strict"):
        found = runs[name](x.to("npu"), y.to("npu"))
    assert found.dtype == dtype
    # One unit in the last place of the largest value; MindSpore's float64 softmax is right to 1e-10.
    tolerance = {torch.float64: 1e-10, torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype]
    torch.testing.assert_close(
        found.cpu().double(), runs[name](x.double(), y.double()), rtol=tolerance, atol=tolerance
    )


NUMBERS = (torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.bool)


@pytest.mark.parametrize("right", NUMBERS, ids=str)
@pytest.mark.parametrize("left", NUMBERS, ids=str)
def test_promotion(left: torch.dtype, right: torch.dtype) -> None:
    x, y = make("p").to(left), make("p").flip(0).to(right)
    for operation in (torch.mul, torch.eq, torch.lt, torch.maximum):
        wanted = operation(x, y)
        found = operation(x.to("npu"), y.to("npu"))
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(
            found.cpu(), wanted, rtol=1e-3 if wanted.dtype == torch.float16 else 1e-6, atol=0
        )


def test_promotion_of_scalars() -> None:
    x, i = make("x"), make("i")
    zero_dim = torch.tensor(2.5, dtype=torch.float64)
    for run in (
        lambda x, i, s: x * s,
        lambda x, i, s: i * 2.5,
        lambda x, i, s: i + True,
        lambda x, i, s: x.half() * s,
        lambda x, i, s: i == 2.0,
    ):
        with route("strict"):
            found = run(x.to("npu"), i.to("npu"), zero_dim.to("npu"))
        wanted = run(x, i, zero_dim)
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found.cpu(), wanted)


def test_in_place_writes_through_views() -> None:
    with route("strict"):
        base = torch.zeros(6, 8, device="npu")
        view = base[1:4, ::2]
        result = view.add_(torch.arange(4, device="npu", dtype=torch.float32))
        view.t().mul_(2)
    assert result is view
    wanted = torch.zeros(6, 8)
    wanted[1:4, ::2] = 2 * torch.arange(4.0)
    assert torch.equal(base.cpu(), wanted)


def test_in_place_keeps_dtype_and_refuses_a_lossy_one() -> None:
    i, x = make("i").to("npu"), make("x").to("npu")
    half = make("x").half().to("npu")
    with route("strict"):
        half.add_(x)
        assert half.dtype == torch.float16
        with pytest.raises(RuntimeError, match="can't be cast to the desired output type Long"):
            i.mul_(x)


def test_in_place_refuses_to_grow() -> None:
    row, x = make("x")[:1].to("npu"), make("x").to("npu")
    before = row.cpu()
    with route("strict"), pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
        row.add_(x)
    assert torch.equal(row.cpu(), before)


@pytest.mark.skipif(
    _runtime.on_ascend(), reason="there MindSpore notices when the operator's turn comes, in words of its own"
)
def test_wrong_arguments_get_torch_errors() -> None:
    x, y = make("x").to("npu"), make("b").to("npu")
    for run in (
        lambda: x + x[:, :3],
        lambda: x @ x,
        lambda: torch.bmm(y, y),
        lambda: torch.cat([x, y]),
        lambda: x.index_select(0, torch.tensor([99], device="npu")),
        lambda: x[torch.tensor([99], device="npu")],
        lambda: F.embedding(torch.tensor([-1], device="npu"), x),
        lambda: x.softmax(7),
        lambda: x.topk(99, 1),
    ):
        with pytest.raises((RuntimeError, IndexError)) as ours:
            run()
        assert "MindSpore" not in str(ours.value), ours.value
        assert "failed on route" not in str(ours.value), ours.value


def test_out_is_resized_and_cast() -> None:
    x, y = (make(kind).to("npu") for kind in "xy")
    out = torch.empty(0, device="npu")
    strided = torch.zeros(8, 6, device="npu").t()
    double = torch.empty(6, 8, dtype=torch.float64, device="npu")
    with route("strict"):
        assert torch.add(x, y, out=out) is out
        torch.mul(x, y, out=strided)
        torch.mul(x, y, out=double)
        values, indices = torch.max(
            x, 1, out=(torch.empty(0, device="npu"), torch.empty(0, dtype=torch.int64, device="npu"))
        )
    x, y = x.cpu(), y.cpu()
    assert torch.equal(out.cpu(), x + y)
    assert torch.equal(strided.cpu(), x * y)
    assert torch.equal(double.cpu(), (x * y).double())
    assert torch.equal(values.cpu(), x.max(1).values)
    assert torch.equal(indices.cpu(), x.max(1).indices)


def test_result_never_shares_an_input() -> None:
    x = make("x").to("npu")
    with route("strict"):
        results = [
            x.clamp(min=-100),
            x.pow(1.0),
            x * 1,
            x.tril(99),
            torch.cat([x]),
            x.masked_fill(x > 99, 0),
            x.sum(()),
        ]
    for result in results:
        assert result.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def test_strict_names_the_operator() -> None:
    x = make("x").to("npu")
    with (
        route("strict"),
        pytest.raises(NotImplementedError, match=r"strict: aten::_linalg_svd has neither") as error,
    ):
        torch.linalg.svd(x)
    assert len(str(error.value).splitlines()) == 1


def test_strict_takes_empty_tensors() -> None:
    with route("strict"):
        x = torch.empty(0, 8, device="npu")
        assert (x + 1).shape == (0, 8)
        assert (x @ torch.ones(8, 2, device="npu")).shape == (0, 2)


def test_bfloat16_products_have_a_kernel() -> None:
    """MindSpore's CPU backend has none; the oneDNN that it ships does (mindspeed_ms.kernels.matmul)."""
    taken = "mindspore" if _runtime.on_ascend() else "csrc"
    x = make("x").bfloat16().to("npu")
    coverage.reset()
    with route("strict"):
        product = x @ x.t()
    assert {row["route"] for row in coverage.snapshot() if "mm" in row["op"]} == {taken}
    exact = x.cpu().double() @ x.cpu().double().t()
    torch.testing.assert_close(product.cpu(), exact.bfloat16(), rtol=2**-8, atol=0)


def test_dropout_draws_from_the_npu_generator() -> None:
    x = torch.ones(64, 64, device="npu")
    cpu_state = torch.get_rng_state()

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        torch.npu.manual_seed(7)
        return torch.native_dropout(x, 0.25, True)

    for mode in ("auto", "strict", "host"):
        with route(mode):
            (first, mask), (again, _) = draw(), draw()
        assert torch.equal(first.cpu(), again.cpu())
        assert torch.equal(first.cpu(), mask.cpu().float() / 0.75)
        assert abs(mask.float().mean().item() - 0.75) < 0.03  # 4 standard deviations of 4096 draws
    assert torch.equal(torch.get_rng_state(), cpu_state)


def test_every_lowering_is_met_by_a_case() -> None:
    """The table's operators are those that CASES reach in route strict, so that none is untested."""
    coverage.reset()
    for case in CASES:
        with route("strict"):
            case.run(*(make(kind).to("npu") for kind in case.inputs))
    met = {row["op"] for row in coverage.snapshot() if row["route"] == "mindspore"}
    reached = {
        name
        for name, entry in registry.table.items()
        if any(f"aten::{overload.name}" in met for overload in entry.overloads)
    }
    assert {name for name, entry in registry.table.items() if entry.mindspore} - reached == set()
