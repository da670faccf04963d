"""Attention against float64, with the error of the same mathematics in torch beside it."""

import itertools
import math

import pytest
import torch
from kernel_checks import DTYPES, ISAS, assert_as_good_as_torch, check_against_float64, isa
from mindspeed_ms import kernels
from mindspeed_ms.kernels.attention import (
    LAYOUTS,
    Segment,
    csrc,
    mask_is_causal,
    packed_segments,
)
from mindspeed_ms.routes import route

# (s, sk, b, heads, kv_heads, dim, value_dim), flags
CASES = {
    "one-block": ((7, 7, 1, 1, 1, 16, 16), {}),
    "causal": ((100, 100, 2, 3, 3, 64, 64), {"causal": True}),
    "gqa-more-keys": ((97, 193, 1, 4, 2, 80, 48), {"causal": True}),
    "mqa-fewer-keys": ((193, 97, 1, 4, 1, 17, 33), {"causal": True}),
    "window": ((200, 200, 1, 2, 1, 128, 128), {"window": (50, 20)}),
    "causal-window": ((200, 200, 1, 2, 2, 32, 32), {"window": (40, 7), "causal": True}),
    "dropout": ((200, 200, 1, 2, 1, 40, 40), {"causal": True, "dropout": 0.3}),
    "mask-softcap": ((70, 130, 2, 2, 1, 40, 40), {"mask": 0.4, "softcap": 3.0, "scale": 0.5}),
    "mla": ((100, 100, 1, 2, 2, 192, 128), {"causal": True}),
    "dim-256": ((100, 100, 1, 1, 1, 256, 256), {"causal": True}),
    "sink": ((64, 64, 2, 2, 2, 24, 24), {"causal": True, "sink": True}),
    "shift": ((50, 90, 1, 2, 2, 32, 32), {"causal": True, "shift": -10}),
}
# The composite beside ours keeps all scores. Without them the backward pass recomputes probabilities from the
# rounded log-sum-exp, and the bf16 products take probabilities rounded to bf16: one or two roundings more.
# torch's own flash kernel does both; test_no_worse_than_torchs_kernel compares with it at the usual slack.
SLACK = {torch.float32: 2.0, torch.float16: 2.0, torch.bfloat16: 2.0}


def make(case, dtype):
    (s, sk, b, heads, kv_heads, dim, value_dim), flags = CASES[case]
    flags = dict(flags)
    shapes = (s, b, heads, dim), (sk, b, kv_heads, dim), (sk, b, kv_heads, value_dim)
    inputs = [torch.randn(shape).to(dtype) for shape in shapes]
    if "mask" in flags:
        flags["mask"] = torch.rand(b, 1, s, sk) < flags["mask"]
    if "sink" in flags:
        flags["sink"] = torch.randn(heads)
    return inputs, flags


def run(implementation, inputs, dtype, flags):
    """Output, finite log-sum-exp, and gradients; gradients flow in through both outputs."""
    leaves = [x.detach().to(dtype).clone().requires_grad_() for x in inputs]
    with route(implementation or "auto"):
        torch.manual_seed(5)
        out, lse = kernels.attention(*leaves, return_lse=True, **flags)
        torch.manual_seed(6)
        dout, dlse = torch.randn(out.shape).to(inputs[0].dtype), torch.randn(lse.shape)
        finite = torch.isfinite(lse)
        loss = (out * dout.to(out.dtype)).sum(dtype=torch.float64) + (lse[finite] * dlse[finite]).sum()
        grads = torch.autograd.grad(loss, leaves)
    return [out.detach(), lse.detach()[finite], *grads]


@pytest.mark.parametrize("name", [*ISAS, "avx512_bf16"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_error_and_gradients(name, dtype, case):
    torch.manual_seed(0)
    inputs, flags = make(case, dtype)
    with isa(name):
        ours = run(None, inputs, dtype, flags)
    torchs = run("composite", inputs, dtype, flags)
    exact = run("composite", inputs, torch.float64, flags)
    for what, *triple in zip(("output", "lse", "dq", "dk", "dv"), ours, torchs, exact, strict=True):
        assert_as_good_as_torch(*triple, what=what, slack=SLACK[dtype])


def test_composite_is_the_textbook():
    q, k, v = (torch.randn(9, 2, 3, 8, dtype=torch.float64) for _ in range(3))
    bhsd = [t.permute(1, 2, 0, 3) for t in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*bhsd, is_causal=True).permute(2, 0, 1, 3)
    torch.testing.assert_close(kernels.attention(q, k, v, causal=True), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [64, 128])
def test_no_worse_than_torchs_kernel(dtype, dim):
    torch.manual_seed(7)
    inputs = [torch.randn(400, 1, 4, dim).to(dtype) for _ in range(3)]
    seeds = [torch.randn(400, 1, 4, dim)]

    def torchs(q, k, v):
        bhsd = [t.permute(1, 2, 0, 3) for t in (q, k, v)]
        return torch.nn.functional.scaled_dot_product_attention(*bhsd, is_causal=True).permute(2, 0, 1, 3)

    check_against_float64(lambda *a: kernels.attention(*a, causal=True), torchs, inputs, seeds)


def test_causal_masks_are_recognised():
    causal = torch.ones(1, 1, 6, 6, dtype=torch.bool).triu(1)
    assert mask_is_causal(causal, 6, 6)
    causal[0, 0, 2, 5] = False  # in place: the kept answer must not be used
    assert not mask_is_causal(causal, 6, 6)
    assert mask_is_causal(torch.ones(4, 6, dtype=torch.bool).triu(3), 4, 6)
    assert not mask_is_causal(torch.zeros(2, 1, 6, 6, dtype=torch.bool), 6, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_sequences_do_not_see_each_other(dtype):
    torch.manual_seed(1)
    ends = [0, 5, 5, 120, 128]
    q, k, v = (torch.randn(130, h, 32).to(dtype).requires_grad_() for h in (4, 2, 2))
    cu = torch.tensor(ends, dtype=torch.int32)
    out, lse = kernels.attention(q, k, v, causal=True, cu_seqlens_q=cu, return_lse=True)
    dout = torch.randn_like(out)
    grads = torch.autograd.grad(out, (q, k, v), dout)
    assert not any(t[128:].any() for t in (out, *grads))
    assert lse[:, 128:].isneginf().all()
    for begin, end in itertools.pairwise(ends):
        alone = [t[begin:end].detach().unsqueeze(1).requires_grad_() for t in (q, k, v)]
        expected, expected_lse = kernels.attention(*alone, causal=True, return_lse=True)
        assert torch.equal(out[begin:end], expected.squeeze(1))
        assert torch.equal(lse[:, begin:end], expected_lse.squeeze(0))
        if end > begin:
            alone_grads = torch.autograd.grad(expected, alone, dout[begin:end].unsqueeze(1))
            for g, e in zip(grads, alone_grads, strict=True):
                assert torch.equal(g[begin:end], e.squeeze(1))


@pytest.mark.parametrize("kinds", [{"causal": True}, {"causal": False}, {"causal": True, "window": (3, 0)}])
def test_packed_sequences_with_padding_against_float64(kinds):
    """Sequences of their own lengths for queries and keys, padding behind each, one without queries."""
    torch.manual_seed(3)
    sums_q, places_q = torch.tensor([0, 5, 5, 105]), torch.tensor([0, 8, 16, 120])
    sums_k, places_k = torch.tensor([0, 9, 12, 112]), torch.tensor([0, 9, 16, 130])
    segments = packed_segments(sums_q, sums_k, places_q, places_k)
    inputs = [torch.randn(n, h, d) for n, h, d in ((124, 4, 32), (131, 2, 32), (131, 2, 48))]
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [t.to(dtype).requires_grad_() for t in inputs]
        out, lse = kernels.attention(*leaves, segments=segments, return_lse=True, **kinds)
        seen = lse.isfinite()
        total = (out * torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)).sum() + lse[seen].sum()
        results.append((out, lse, *torch.autograd.grad(total, leaves)))
    for got, exact in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)
    out, _, *grads = results[0]
    query, key = (places_q, sums_q), (places_k, sums_k)
    for tensor, (places, sums) in ((out, query), (grads[0], query), (grads[2], key)):
        ends = places[:-1] + sums.diff()
        assert not any(tensor[a:b].any() for a, b in zip(ends.tolist(), places[1:].tolist(), strict=True))


def test_what_one_sequence_does_not_cover_has_no_gradient():
    q, k, v = (torch.randn(9, 2, 16, requires_grad=True) for _ in range(3))
    out = kernels.attention(q, k, v, segments=(Segment(2, 4, 3, 5, 1),))
    for grad in torch.autograd.grad(out.sum(), (q, v)):
        assert grad.isfinite().all()
    assert not torch.autograd.grad(kernels.attention(q, k, v, segments=()).sum(), q)[0].any()


@pytest.mark.parametrize(
    "sums", [([1, 3], None), ([0, 3, 2], None), ([0, 3], [0, 2]), ([0, 3], [0, 3, 4])]
)  # fmt: skip
def test_sums_that_are_no_sequences_are_refused(sums):
    sums, places = (None if s is None else torch.tensor(s) for s in sums)
    with pytest.raises(ValueError, match="attention"):
        packed_segments(sums, None, places)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_views(layout):
    """Strided inputs, as Megatron's split of the joint projection makes them, give the same numbers."""
    torch.manual_seed(2)
    q, k, v = torch.randn(40, 2, 3, 3 * 24).split(24, -1)
    moved = [0, 0, 0]
    for source, target in zip(LAYOUTS["sbhd"], LAYOUTS[layout], strict=True):
        moved[target] = source
    expected = kernels.attention(q.contiguous(), k.contiguous(), v.contiguous(), causal=True)
    got = kernels.attention(*(t.permute(*moved, 3) for t in (q, k, v)), causal=True, layout=layout)
    assert torch.equal(got, expected.permute(*moved, 3))


def test_ring_steps_merge_by_log_sum_exp():
    torch.manual_seed(3)
    q, k, v = (torch.randn(128, 1, 2, 32) for _ in range(3))
    whole = kernels.attention(q, k, v, causal=True)
    parts = [
        kernels.attention(q, k[a:b], v[a:b], causal=True, shift=-a, return_lse=True)
        for a, b in ((0, 50), (50, 128))
    ]
    total = torch.logaddexp(parts[0][1], parts[1][1])
    merged = sum(o * (lse - total).exp().permute(2, 0, 1).unsqueeze(-1) for o, lse in parts)
    torch.testing.assert_close(merged, whole, rtol=1e-5, atol=1e-6)


def test_query_without_keys_gives_zeros():
    q, k, v = (torch.randn(10, 1, 1, 16, requires_grad=True) for _ in range(3))
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[3] = True
    out, lse = kernels.attention(q, k, v, mask=mask, return_lse=True)
    out.square().sum().backward()
    assert lse[0, 0, 3] == -math.inf
    assert not out[3].any()
    assert not q.grad[3].any()
    assert all(t.grad.isfinite().all() for t in (q, k, v))


@pytest.mark.parametrize("name", [*ISAS, "avx512_bf16"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_row_and_huge_scores_do_not_overflow(name, dtype):
    torch.manual_seed(4)
    q, k, v = (torch.randn(120, 1, 2, 32).to(dtype) for _ in range(3))
    q[7, 0, 0, 3] = math.nan
    q[9] *= 200
    with isa(name):
        out = kernels.attention(q, k, v, causal=True)
    assert out[7, 0, 0].isnan().all()
    rest = torch.ones(120, 1, 2, dtype=torch.bool)
    rest[7, 0, 0] = False
    assert out[rest].isfinite().all()


def test_zero_size():
    for s, sk in ((0, 4), (4, 0), (0, 0)):
        q, k, v = (torch.randn(n, 2, 2, 16, requires_grad=True) for n in (s, sk, sk))
        out = kernels.attention(q, k, v)
        out.sum().backward()
        assert out.shape == (s, 2, 2, 16)
        assert not out.any()


def test_dropout_rate_and_independence():
    keep = csrc.keep(((0, 0, 512, 0, 384, 0),), 2, 0, round(0.25 * 65536), seed=11)
    dropped = (keep == 0).double()
    assert torch.equal(keep.unique(), torch.tensor([0.0, 65536 / 49152]))
    n = dropped.numel()
    assert abs(dropped.mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / n)
    centred = (dropped - 0.25) / math.sqrt(0.25 * 0.75)
    pairs = {
        "rows": (centred[:, 1:], centred[:, :-1]),
        "columns": (centred[..., 1:], centred[..., :-1]),
        "halves": (centred[..., :48], centred[..., 48:96]),
        "heads": (centred[0], centred[1]),
    }
    for what, (a, b) in pairs.items():
        assert abs((a * b).mean()) < 5 / math.sqrt(a.numel()), what
    other = csrc.keep(((0, 0, 512, 0, 384, 0),), 2, 0, round(0.25 * 65536), seed=12)
    assert not torch.equal(keep, other)


def test_dropout_follows_the_generator():
    q, k, v = (torch.randn(64, 1, 2, 16) for _ in range(3))
    state = torch.get_rng_state()
    first = kernels.attention(q, k, v, dropout=0.5)
    assert not torch.equal(first, kernels.attention(q, k, v, dropout=0.5))
    torch.set_rng_state(state)
    assert torch.equal(first, kernels.attention(q, k, v, dropout=0.5))


def test_result_does_not_depend_on_threads():
    q, k, v = (torch.randn(200, 1, 4, 32, requires_grad=True) for _ in range(3))
    before = torch.get_num_threads()
    results = []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            out = kernels.attention(q, k, v, causal=True)
            results.append((out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_wrong_shapes_are_named():
    q = torch.ones(4, 1, 3, 8)
    with pytest.raises(ValueError, match="query heads are no multiple of key heads"):
        kernels.attention(q, torch.ones(4, 1, 2, 8), torch.ones(4, 1, 2, 8))
    with pytest.raises(ValueError, match="different head dimensions"):
        kernels.attention(q, torch.ones(4, 1, 3, 9), torch.ones(4, 1, 3, 8))
    with pytest.raises(ValueError, match="unknown layout 'sdbh'"):
        kernels.attention(q, q, q, layout="sdbh")
    with pytest.raises(ValueError, match=r"dropout is 1\.0"):
        kernels.attention(q, q, q, dropout=1.0)
