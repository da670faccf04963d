"""Router, permutation, grouped products of a mixture of experts against float64 and Megatron's code."""

import pytest
import torch
from kernel_checks import DTYPES, ISAS, check_against_float64, isa
from mindspeed_ms import kernels
from mindspeed_ms.kernels import backend
from mindspeed_ms.routes import route

ROUTERS = [
    {"topk": 2},
    {"topk": 1, "scaling_factor": 2.5},
    {"topk": 4, "pre_softmax": True},
    {"topk": 1, "score_function": "sigmoid"},
    {"topk": 6, "score_function": "sigmoid", "scaling_factor": 2.5, "groups": 4, "group_topk": 2},
    {"topk": 4, "score_function": "softmax", "pre_softmax": True, "groups": 8, "group_topk": 4},
]


def composite(function):
    """`function` on the reference in torch operators."""

    def call(*inputs):
        with route("composite"):
            return function(*inputs)

    return call


def distinct_logits(tokens: int, experts: int, dtype: torch.dtype) -> torch.Tensor:
    """No two of a row are equal in any dtype: of equal ones any may be chosen."""
    return torch.stack([torch.randperm(experts) for _ in range(tokens)]).to(dtype) * 0.25 - 3.0


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", ROUTERS, ids=str)
def test_router(name, dtype, options):
    torch.manual_seed(0)
    logits = distinct_logits(37, 24, dtype)
    options = {**options}
    topk = options.pop("topk")
    with isa(name):
        check_against_float64(
            lambda x: kernels.topk_router(x, topk, **options)[0],
            composite(lambda x: kernels.topk_router(x, topk, **options)[0]),
            [logits],
            [torch.randn(37, 24)],
        )
        chosen = kernels.topk_router(logits, topk, **options)[1]
    assert torch.equal(chosen, kernels.topk_router(logits.double(), topk, **options)[1])
    assert (chosen.sum(-1) == topk).all()


@pytest.mark.parametrize("options", ROUTERS, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_router_is_megatrons(options, biased):
    from megatron.core.transformer.moe.moe_utils import topk_routing_with_score_function

    if biased and options.get("score_function") != "sigmoid":
        pytest.skip("the bias is for sigmoid scores")
    torch.manual_seed(1)
    logits = torch.randn(64, 24, requires_grad=True)
    bias = torch.randn(24) * 0.3 if biased else None
    given = {"score_function": "softmax", "pre_softmax": False, **options}
    theirs, their_map = topk_routing_with_score_function(
        logits,
        given["topk"],
        given["pre_softmax"],
        given.get("groups"),
        given.get("group_topk"),
        given.get("scaling_factor"),
        given["score_function"],
        bias,
    )
    ours, our_map = kernels.topk_router(logits, expert_bias=bias, **options)
    assert torch.equal(our_map, their_map)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    seed = torch.randn(64, 24)
    for a, b in zip(*(torch.autograd.grad(x, logits, seed) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_auxiliary_scores_and_loss(function, dtype):
    torch.manual_seed(2)
    logits = distinct_logits(33, 20, dtype)
    chosen, scores = kernels.auxiliary_scores(logits, 3, function)
    assert scores.dtype == torch.float32
    assert torch.equal(chosen, logits >= logits.topk(3).values[:, -1:])
    counts = chosen.sum(0)

    def loss(x):
        return kernels.load_balancing_loss(
            kernels.auxiliary_scores(x, 3, function)[1], counts, 33, 3, 20, 0.01
        )

    check_against_float64(loss, composite(loss), [logits], [torch.ones(())])


def test_equal_scores_and_what_is_no_number():
    logits = torch.zeros(2, 6)
    logits[1, 4] = float("nan")
    chosen = kernels.topk_router(logits, 2)[1]
    assert chosen[0].nonzero().flatten().tolist() == [0, 1]
    assert chosen[1].nonzero().flatten().tolist() == [0, 4]


@pytest.mark.parametrize(
    "options",
    [
        {"topk": 9},
        {"topk": 2, "score_function": "relu"},
        {"topk": 2, "groups": 3, "group_topk": 1},
        {"topk": 2, "groups": 2},
        {"topk": 2, "expert_bias": torch.zeros(8)},
    ],
)
def test_what_the_router_refuses(options):
    with pytest.raises(ValueError, match="router"):
        kernels.topk_router(torch.zeros(3, 8), **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capacity", [None, 4])
def test_permutation_is_megatrons(dtype, capacity):
    from megatron.core.transformer.moe.moe_utils import permute, unpermute

    torch.manual_seed(3)
    tokens = torch.randn(19, 40).to(dtype)
    routing_map = torch.rand(19, 6) < 0.4
    if capacity:  # as Megatron's token dropping leaves it: as many for each expert
        order = torch.rand(19, 6).argsort(0)
        routing_map = order < capacity
    count = capacity * 6 if capacity else int(routing_map.sum())
    probs = torch.rand(19, 6)
    padded = capacity is not None
    expected, _, order, *_ = permute(tokens, routing_map, num_out_tokens=count, drop_and_pad=padded)
    rows = kernels.permutation(routing_map, capacity)
    assert torch.equal(rows.token, order)
    assert torch.equal(kernels.gather_rows(tokens, rows.token), expected)
    back = unpermute(
        expected.double(),
        order,
        tokens.shape,
        probs=probs.double(),
        routing_map=routing_map,
        drop_and_pad=capacity is not None,
    )
    ours = kernels.combine_rows(expected, rows.token, 19, probs[rows.token, rows.expert])
    torch.testing.assert_close(ours.double(), back, rtol=torch.finfo(dtype).eps * 2, atol=1e-6)


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_there_and_back(name, dtype):
    torch.manual_seed(4)
    rows = kernels.permutation(torch.rand(23, 5) < 0.5)
    count = len(rows.token)
    x, y, w = torch.randn(23, 130).to(dtype), torch.randn(count, 130).to(dtype), torch.rand(count)
    with isa(name):
        check_against_float64(
            lambda x: kernels.gather_rows(x, rows.token),
            lambda x: x[rows.token],
            [x],
            [torch.randn(count, 130)],
        )
        check_against_float64(
            lambda y, w: kernels.combine_rows(y, rows.token, 23, w),
            lambda y, w: torch.zeros(23, 130, dtype=y.dtype).index_add(0, rows.token, y * w[:, None].to(y)),
            [y, w],
            [torch.randn(23, 130)],
        )
        check_against_float64(
            lambda y: kernels.combine_rows(y, rows.token, 23),
            lambda y: torch.zeros(23, 130, dtype=y.dtype).index_add(0, rows.token, y),
            [y],
            [torch.randn(23, 130)],
        )


def test_permutation_of_nothing_and_too_much():
    empty = kernels.permutation(torch.zeros(4, 3, dtype=torch.bool))
    assert empty.token.shape == (0,)
    assert kernels.gather_rows(torch.randn(4, 8), empty.token).shape == (0, 8)
    assert not kernels.combine_rows(torch.randn(0, 8), empty.token, 4).any()
    with pytest.raises(ValueError, match="2 rows wanted"):
        kernels.permutation(torch.eye(3, dtype=torch.bool)[:1], count=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
def test_grouped_matmul(dtype, turned, stacked):
    torch.manual_seed(5)
    counts = [4, 0, 9, 1]
    x = torch.randn(14, 24).to(dtype)
    weights = [(torch.randn(24, 17) * 0.2).to(dtype) for _ in counts]
    if turned:
        weights = [w.t().contiguous() for w in weights]
    if stacked:
        weights = [torch.stack(weights)]

    def exact(x, *weights):
        matrices = weights[0] if stacked else weights
        parts = zip(x.split(counts), matrices, strict=True)
        return torch.cat([rows @ (w.t() if turned else w) for rows, w in parts])

    check_against_float64(
        lambda x, *w: kernels.grouped_matmul(x, w[0] if stacked else w, counts, turned=turned),
        exact,
        [x, *weights],
        [torch.randn(14, 17)],
    )
    if not turned and not stacked:
        dy = torch.randn(14, 17).to(dtype)
        got = kernels.grouped_weight_gradient(x, dy, counts)
        for part, a, b in zip(got, x.split(counts), dy.split(counts), strict=True):
            torch.testing.assert_close(
                part.double(), a.double().t() @ b.double(), rtol=torch.finfo(dtype).eps * 4, atol=1e-3
            )
        with pytest.raises(ValueError, match=r"counts .* do not fit x"):
            kernels.grouped_matmul(x, weights, [4, 0, 9, 2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [1, 1 << 26])
def test_linear_cross_entropy(dtype, chunk):
    torch.manual_seed(6)
    hidden, weight = torch.randn(3, 7, 32).to(dtype), (torch.randn(50, 32) * 0.2).to(dtype)
    target = torch.randint(0, 50, (3, 7))
    check_against_float64(
        lambda h, w: kernels.linear_cross_entropy(h, w, target, chunk_bytes=chunk),
        lambda h, w: kernels.cross_entropy.cross_entropy_composite(h @ w.t(), target),
        [hidden, weight],
        [torch.rand(3, 7)],
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_results_do_not_depend_on_the_number_of_threads(threads):
    torch.manual_seed(7)
    rows = kernels.permutation(torch.rand(300, 8) < 0.4)
    y, logits = torch.randn(len(rows.token), 600), torch.randn(300, 64)
    expected = kernels.combine_rows(y, rows.token, 300), kernels.topk_router(logits, 4)[0]
    native = backend.native()
    before = native.threads()
    native.set_threads(threads)
    try:
        found = kernels.combine_rows(y, rows.token, 300), kernels.topk_router(logits, 4)[0]
    finally:
        native.set_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
