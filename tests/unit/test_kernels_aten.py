"""mindspeed_ms.kernels.aten against torch's own operators, by aten name."""

import pytest
import torch
from kernel_checks import DTYPES, ISAS, assert_as_good_as_torch, isa
from mindspeed_ms.kernels import aten, aten_nn

pytestmark = [
    pytest.mark.usefixtures("on_isa"),
    pytest.mark.parametrize("on_isa", ISAS, indirect=True),
    pytest.mark.parametrize("dtype", DTYPES),
]


@pytest.fixture
def on_isa(request):
    torch.manual_seed(0)
    with isa(request.param):
        yield


def compare(function, reference, *inputs, slack=1.1):
    """Our result, torch's and torch's in float64 on the same inputs."""
    wide = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs]
    ours, torchs, exact = function(*inputs), reference(*inputs), reference(*wide)
    if isinstance(ours, torch.Tensor):
        ours, torchs, exact = (ours,), (torchs,), (exact,)
    for i, (o, t, e) in enumerate(zip(ours, torchs, exact, strict=True)):
        assert_as_good_as_torch(o, t.to(o.dtype), e, f"result {i}", slack=slack)


@pytest.mark.parametrize("name", [name for name in aten.UNARY if name != "copy"])
def test_unary(name, dtype):
    x = (torch.rand(41, 90) * 6 + 0.01).to(dtype)
    if name not in ("sqrt", "rsqrt"):
        x = x - 3
    x[x == 0] = 1
    compare(getattr(aten, name), getattr(torch, name), x)
    y = x.clone()
    assert getattr(aten, name + "_")(y) is y
    assert torch.equal(y, getattr(aten, name)(x))


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "maximum", "minimum"])
def test_binary(name, dtype):
    x = torch.randn(6, 7, 90).to(dtype)
    others = [
        torch.rand(s).to(dtype) + 0.5 for s in [(6, 7, 90), (90,), (7, 90), (1, 1, 90), (6, 7, 1), (6, 1, 1)]
    ]
    for other in others:
        compare(getattr(aten, name), getattr(torch, name), x, other)
    if name in ("add", "sub"):
        compare(
            lambda a, b: getattr(aten, name)(a, b, 0.3),
            lambda a, b: getattr(torch, name)(a, b, alpha=0.3),
            x,
            x,
        )
    if name in ("maximum", "minimum"):
        x.view(-1)[3] = torch.nan
        assert torch.isnan(getattr(aten, name)(x, others[0]).view(-1)[3])
        return
    compare(lambda a: getattr(aten, name)(a, 2.5), lambda a: getattr(torch, name)(a, 2.5), x)
    y = x.clone()
    getattr(aten, name + "_")(y, others[1])
    assert torch.equal(y, getattr(aten, name)(x, others[1]))


def test_narrow_gradient_into_fp32(dtype):
    accumulator, grad = torch.randn(1000), torch.randn(1000).to(dtype)
    expected = accumulator + grad.float()
    assert torch.equal(aten.add_(accumulator, grad), expected)


def test_broadcast_that_is_not_supported_is_refused(dtype):
    with pytest.raises(ValueError, match="repeats neither"):
        aten.add(torch.ones(4, 3, 2, dtype=dtype), torch.ones(3, 1, dtype=dtype))


def test_conversions(dtype):
    x = torch.randn(3001) * 100
    x[:6] = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38, 1e-42, -0.0])
    narrow = aten.to_dtype(x, dtype)
    assert torch.equal(narrow.nan_to_num(7.0), x.to(dtype).nan_to_num(7.0))
    assert torch.equal(aten.to_dtype(narrow, torch.float32).nan_to_num(7.0), narrow.float().nan_to_num(7.0))


def test_strided_copies(dtype):
    x = torch.randn(5, 70, 33, 3).to(dtype)
    views = [
        x.permute(2, 0, 3, 1),
        x.transpose(1, 2),
        x[:, ::2, 1:],
        x[:, :, 5],
        x.flip(1).permute(3, 2, 1, 0),
    ]
    views += [x[:1].expand(4, 70, 33, 3), x.view(-1)[::7], torch.tensor(3.0, dtype=dtype), x[:0]]
    for view in views:
        got = aten.clone(view)
        assert got.is_contiguous()
        assert torch.equal(got, view)
    integers = torch.arange(600).view(20, 30).t()
    assert torch.equal(aten.clone(integers), integers)
    assert torch.equal(aten.clone(integers % 2 == 0), integers % 2 == 0)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate, dtype):
    x, grad = (torch.randn(41, 90) * 3).to(dtype), torch.randn(41, 90).to(dtype)
    compare(
        lambda x: aten_nn.gelu(x, approximate), lambda x: torch.ops.aten.gelu(x, approximate=approximate), x
    )
    compare(
        lambda g, x: aten_nn.gelu_backward(g, x, approximate),
        lambda g, x: torch.ops.aten.gelu_backward(g, x, approximate=approximate),
        grad,
        x,
    )


def test_silu(dtype):
    x, grad = (torch.randn(41, 90) * 3).to(dtype), torch.randn(41, 90).to(dtype)
    compare(aten_nn.silu, torch.nn.functional.silu, x)
    compare(aten_nn.silu_backward, torch.ops.aten.silu_backward, grad, x)


def test_softmax(dtype):
    x, grad = (torch.randn(41, 90) * 3).to(dtype), torch.randn(41, 90).to(dtype)
    compare(aten_nn._softmax, lambda x: torch.softmax(x, -1), x)
    compare(aten_nn._log_softmax, lambda x: torch.log_softmax(x, -1), x)
    y = torch.softmax(x, -1)
    log = torch.log_softmax(x, -1)
    for name, out in (("_softmax_backward_data", y), ("_log_softmax_backward_data", log)):
        reference = getattr(torch.ops.aten, name)
        compare(getattr(aten_nn, name), lambda g, o, f=reference: f(g, o, -1, g.dtype), grad, out, slack=1.3)


def test_layer_norm(dtype):
    x, grad = torch.randn(6, 7, 90).to(dtype), torch.randn(6, 7, 90).to(dtype)
    weight, bias = torch.randn(90).to(dtype), torch.randn(90).to(dtype)
    y, mean, rstd = aten_nn.native_layer_norm(x, [90], weight, bias, 1e-5)
    exact = torch.ops.aten.native_layer_norm(x.double(), [90], weight.double(), bias.double(), 1e-5)
    torchs = torch.ops.aten.native_layer_norm(x, [90], weight, bias, 1e-5)
    assert_as_good_as_torch(y, torchs[0], exact[0])
    assert mean.shape == rstd.shape == (6, 7, 1)
    torch.testing.assert_close(rstd.double(), exact[2], rtol=1e-5, atol=1e-6)
    got = aten_nn.native_layer_norm_backward(grad, x, [90], mean, rstd, weight, bias, [True] * 3)
    reference = torch.ops.aten.native_layer_norm_backward(
        grad.double(), x.double(), [90], *exact[1:], weight.double(), bias.double(), [True] * 3
    )
    torchs = torch.ops.aten.native_layer_norm_backward(
        grad, x, [90], torchs[1], torchs[2], weight, bias, [True] * 3
    )
    for o, t, e in zip(got, torchs, reference, strict=True):
        assert_as_good_as_torch(o, t, e, slack=1.3)
    partial = aten_nn.native_layer_norm_backward(
        grad, x, [90], mean, rstd, weight, bias, [True, False, False]
    )
    assert torch.equal(partial[0], got[0])
    assert partial[1] is partial[2] is None


def test_embedding_dense_backward(dtype):
    grad, ids = torch.randn(40, 30).to(dtype), torch.randint(0, 9, (40,))
    compare(
        lambda g: aten_nn.embedding_dense_backward(g, ids, 9, 2, False),
        lambda g: torch.ops.aten.embedding_dense_backward(g, ids, 9, 2, False),
        grad,
    )


@pytest.mark.parametrize("dim", [None, [0], [-1], [0, 1], [1, 2], [2, 0, 1]])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("name", ["sum", "mean"])
def test_reductions(name, dim, keepdim, dtype):
    x = torch.rand(12, 31, 90).to(dtype)
    if dim is None:
        if keepdim:
            pytest.skip("torch has no keepdim without dim")
        compare(getattr(aten, name), getattr(torch, name), x)
    else:
        compare(
            lambda x: getattr(aten, name)(x, dim, keepdim),
            lambda x: getattr(torch, name)(x, dim, keepdim),
            x,
        )


def test_reductions_over_the_middle_are_refused(dtype):
    with pytest.raises(ValueError, match="first, the last or all"):
        aten.sum(torch.ones(2, 3, 4, dtype=dtype), [1])


def test_lists(dtype):
    shapes = [(3, 5), (1,), (0,), (2000,)]

    def fresh(seed):
        torch.manual_seed(seed)
        return [torch.rand(s).to(dtype) + 0.5 for s in shapes]

    calls = [
        ("_foreach_add_", (fresh(1),), {"alpha": 0.5}),
        ("_foreach_add_", (0.25,), {}),
        ("_foreach_mul_", (0.25,), {}),
        ("_foreach_mul_", ([0.5, 1.0, 2.0, 4.0],), {}),
        ("_foreach_mul_", (fresh(1),), {}),
        ("_foreach_div_", (fresh(1),), {}),
        ("_foreach_sub_", (fresh(1),), {}),
        ("_foreach_addcmul_", (fresh(1), fresh(2)), {"value": 0.3}),
        ("_foreach_addcdiv_", (fresh(1), fresh(2)), {"value": 0.3}),
        ("_foreach_lerp_", (fresh(1), 0.3), {}),
    ]
    for name, args, keywords in calls:
        ours, torchs = fresh(0), fresh(0)
        exact = [x.double() for x in torchs]
        wide = [[x.double() for x in a] if isinstance(a, list) and torch.is_tensor(a[0]) else a for a in args]
        getattr(aten, name)(ours, *args, **keywords)
        getattr(torch, name)(torchs, *args, **keywords)
        getattr(torch, name)(exact, *wide, **keywords)
        for o, t, e in zip(ours, torchs, exact, strict=True):
            assert_as_good_as_torch(o, t, e, name)
    for o, e in zip(aten._foreach_sqrt(fresh(0)), torch._foreach_sqrt(fresh(0)), strict=True):
        torch.testing.assert_close(o, e)
    for o, x in zip(aten._foreach_norm(fresh(0)), fresh(0), strict=True):
        torch.testing.assert_close(o.double(), x.double().norm(), rtol=2.0**-8, atol=0)
