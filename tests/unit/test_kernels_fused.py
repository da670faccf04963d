"""Activations, softmax, rotary embedding, cross entropy, dropout against float64 on each instruction set."""

import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from kernel_checks import DTYPES, ISAS, check_against_float64, isa
from mindspeed_ms import kernels
from mindspeed_ms.kernels.activation import ACTIVATIONS, glu_composite
from mindspeed_ms.kernels.attention import mask_is_causal
from mindspeed_ms.kernels.cross_entropy import cross_entropy_composite
from mindspeed_ms.kernels.rope import LAYOUTS, rope_composite
from mindspeed_ms.kernels.softmax import softmax_composite

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.fixture
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bias_activation(name, dtype, activation):
    x, bias = (torch.randn(37, 150) * 3).to(dtype), torch.randn(150).to(dtype)
    reference = ACTIVATIONS[activation][1]
    with isa(name):
        check_against_float64(
            lambda x, b: kernels.bias_activation(x, b, activation),
            lambda x, b: reference(x + b),
            [x, bias],
            [torch.randn(37, 150)],
        )


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "quick_gelu"])
@pytest.mark.parametrize(("offset", "clamp"), [(0.0, None), (1.0, 1.5)])
def test_bias_glu(name, dtype, activation, offset, clamp):
    x, bias = (torch.randn(5, 21, 150) * 2).to(dtype), torch.randn(150).to(dtype)
    weights = torch.rand(5, 21, 1)
    options = {"linear_offset": offset, "clamp": clamp}
    with isa(name):
        check_against_float64(
            lambda x, b: kernels.bias_glu(x, b, activation, **options),
            lambda x, b: glu_composite(x, b, activation, None, offset, clamp),
            [x, bias],
            [torch.randn(5, 21, 75)],
            slack=2.0,  # the bias gradient sums 105 rows one after the other, torch's in a cascade
        )
        check_against_float64(
            lambda x, w: kernels.bias_glu(x, None, activation, weights=w, **options),
            lambda x, w: glu_composite(x, None, activation, w, offset, clamp),
            [x, weights],
            [torch.randn(5, 21, 75)],
            slack=2.0,  # a weight's gradient sums 75 products one after the other
        )


@pytest.mark.parametrize("name", ISAS)
def test_activations_at_the_ends(name):
    x = torch.tensor([-torch.inf, -1e30, -200.0, -20.0, 0.0, -0.0, 20.0, 200.0, 1e30, torch.inf, torch.nan])
    with isa(name):
        for activation, (_, reference) in ACTIVATIONS.items():
            leaf = x.clone().requires_grad_()
            y = kernels.bias_activation(leaf, None, activation)
            (slope,) = torch.autograd.grad(y.sum(), leaf)
            expected = reference(x.double())
            finite = x.isfinite() & (expected.abs() < torch.finfo(torch.float32).max)
            torch.testing.assert_close(y[finite].double(), expected[finite], rtol=1e-5, atol=1e-30)
            assert torch.isnan(y[-1])
            assert torch.isnan(slope[-1])
            steep = 2.0 * x[2:9].clamp(min=0) if activation == "squared_relu" else (x[2:9] > 0).float()
            torch.testing.assert_close(slope[2:9][[0, 5, 6]], steep[[0, 5, 6]], rtol=1e-4, atol=1e-6)
            assert torch.isfinite(slope[1:9]).all()


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_scaled_softmax(name, dtype, masked, causal):
    x = (torch.randn(2, 3, 17, 70) * 4).to(dtype)
    for shape in [(2, 1, 17, 70), (1, 1, 17, 70), (2, 3, 1, 70)]:
        mask = torch.rand(shape) < 0.3 if masked else None
        with isa(name):
            check_against_float64(
                lambda x, m=mask: kernels.scaled_softmax(x, m, 0.25, causal=causal),
                lambda x, m=mask: softmax_composite(x, m, 0.25, causal=causal),
                [x],
                [torch.randn(2, 3, 17, 70)],
            )


@pytest.mark.parametrize("name", ISAS)
def test_softmax_of_odd_rows(name):
    x = torch.randn(6, 21)
    x[1], x[2, 3], x[3, 4], x[4, 5] = -torch.inf, torch.inf, torch.nan, -torch.inf
    x[5] = torch.linspace(-1e30, 1e30, 21)
    with isa(name):
        y = kernels.scaled_softmax(x)
    expected = torch.softmax(x, -1)
    assert torch.equal(y.isnan(), expected.isnan())
    torch.testing.assert_close(y, expected, equal_nan=True)
    everything = torch.ones(1, 1, 4, 9, dtype=torch.bool)
    with isa(name):
        uniform = kernels.scaled_softmax(torch.randn(1, 2, 4, 9), everything)
    torch.testing.assert_close(uniform, torch.full((1, 2, 4, 9), 1 / 9))
    assert kernels.scaled_softmax(torch.empty(0, 4)).shape == (0, 4)


def wide_angles(freqs: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return freqs.double() if x.dtype == torch.float64 else freqs


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rope(name, dtype, layout):
    wide = torch.randn(11, 2, 3, 3 * 96).to(dtype)
    x = wide[..., 96:192]  # a strided view, as the query inside a fused QKV projection
    for rotary, batch in [(96, 1), (64, 2), (6, 1)]:
        freqs = torch.randn(11, batch, 1, rotary) * 50
        with isa(name):
            check_against_float64(
                lambda x, f=freqs: kernels.rope(x, f, layout, mscale=1.3),
                lambda x, f=freqs: rope_composite(
                    x, f.double() if x.dtype == torch.float64 else f, layout, mscale=1.3
                ),
                [x],
                [torch.randn(11, 2, 3, 96)],
            )
    packed = torch.randn(11, 3, 96)
    freqs = torch.randn(11, 1, 1, 32)
    assert torch.equal(kernels.rope(packed, freqs)[:, None], kernels.rope(packed[:, None], freqs))


@pytest.mark.parametrize("ranks", [1, 2])
def test_packed_sequences_turn_from_their_own_first_token(ranks):
    torch.manual_seed(0)
    lengths, padding = [4, 8, 0, 12], 3
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    whole = [torch.randn(n, 2, 32) for n in lengths]
    freqs = torch.randn(12, 1, 1, 32)
    for rank in range(ranks):

        def share(x, rank=rank):
            chunks = x.tensor_split(2 * ranks)
            return x if ranks == 1 else torch.cat((chunks[rank], chunks[2 * ranks - 1 - rank]))

        x = torch.cat([*map(share, whole), torch.randn(padding, 2, 32)])
        positions = kernels.packed_positions(cu_seqlens, len(x), ranks, rank)
        got = kernels.rope(x, freqs, positions=positions)
        expected = [share(kernels.rope(one, freqs)) for one in whole if len(one)]
        assert torch.equal(got[:-padding], torch.cat(expected))
        plain, position = torch.randn(len(x), 2, 40), x[:, :1]
        cos, sin = freqs.cos(), freqs.sin()
        key, _ = kernels.latent_key_value(plain, position, cos, sin, 24, positions)
        query = kernels.latent_query(torch.cat((plain[..., :24], x), -1), cos, sin, positions)
        assert torch.equal(key[:, 0, 24:], query[:, 0, 24:])
    with pytest.raises(ValueError, match="more than"):
        kernels.packed_positions(cu_seqlens, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latent_attention_turns_pairs_into_halves(dtype):
    """Pairs of channels as complex numbers times exp(i angle); real parts first, then imaginary ones."""
    angles = torch.randn(9, 1, 1, 4)
    cos, sin = (f(torch.cat((angles, angles), -1)) for f in (torch.cos, torch.sin))

    def turned(x: torch.Tensor) -> torch.Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        z = torch.view_as_complex(wide.unflatten(-1, (4, 2)).contiguous())
        z = z * torch.polar(torch.ones_like(angles), angles)[: x.shape[0]].to(z.dtype)
        return torch.cat((z.real, z.imag), -1).to(x.dtype)

    def exact_query(q: torch.Tensor) -> torch.Tensor:
        return torch.cat((q[..., :12], turned(q[..., 12:])), -1)

    q, kv, position = (torch.randn(7, 2, *shape).to(dtype) for shape in ((3, 20), (3, 12 + 10), (1, 8)))
    seed = torch.randn(7, 2, 3, 20)
    check_against_float64(lambda q: kernels.latent_query(q, cos, sin), exact_query, [q], [seed])
    check_against_float64(
        lambda kv, position: kernels.latent_key_value(kv, position, cos, sin, 12),
        lambda kv, position: (
            torch.cat((kv[..., :12], turned(position).expand(-1, -1, 3, -1)), -1),
            kv[..., 12:],
        ),
        [kv, position],
        [seed, torch.randn(7, 2, 3, 10)],
    )


def test_rope_sees_frequencies_changed_in_place():
    x, freqs = torch.randn(4, 1, 1, 8), torch.randn(4, 1, 1, 8)
    before = kernels.rope(x, freqs)
    freqs.zero_()
    assert torch.equal(kernels.rope(x, freqs), x)
    assert not torch.equal(before, x)


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(name, dtype, smoothing):
    logits = (torch.randn(9, 5, 333) * 4).to(dtype)
    target = torch.randint(0, 333, (9, 5))
    with isa(name):
        check_against_float64(
            lambda x: kernels.vocab_parallel_cross_entropy(x, target, smoothing),
            lambda x: cross_entropy_composite(x, target, smoothing),
            [logits],
            [torch.randn(9, 5)],
        )


def test_cross_entropy_reusing_the_logits():
    logits, target = torch.randn(6, 40), torch.randint(0, 40, (6,))
    leaf = logits.clone().requires_grad_()
    kernels.vocab_parallel_cross_entropy(leaf, target).sum().backward()
    own = (logits * 1.0).requires_grad_()
    kernels.vocab_parallel_cross_entropy(own, target, reuse_logits=True).sum().backward()
    assert torch.equal(own.grad, leaf.grad)
    assert torch.equal(own.detach(), leaf.grad)


def _cross_entropy_rank(rank: int, ranks: int, port: int, hidden, weight, target, results) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    group = torch.distributed.group.WORLD
    shard = weight.chunk(ranks)[rank].clone()
    logits = (hidden @ shard.t()).requires_grad_()
    kernels.vocab_parallel_cross_entropy(logits, target, group=group).sum().backward()
    hidden, shard = hidden.clone().requires_grad_(), shard.requires_grad_()
    loss = kernels.linear_cross_entropy(hidden, shard, target, group)
    loss.sum().backward()
    results[rank] = (loss.detach(), logits.grad, hidden.grad, shard.grad)
    torch.distributed.destroy_process_group()


@pytest.mark.distributed
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["kernel", "composite"])
def test_cross_entropy_over_two_ranks(dtype):
    hidden, weight = torch.randn(4, 3, 16, dtype=dtype), torch.randn(64, 16, dtype=dtype)
    target = torch.randint(0, 64, (4, 3))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_cross_entropy_rank, (2, port, hidden, weight, target, results), nprocs=2)
        losses, logit_grads, hidden_grads, weight_grads = zip(*(results[r] for r in range(2)), strict=True)
    x, w = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logits = x @ w.t()
    logits.retain_grad()
    expected = cross_entropy_composite(logits, target)
    expected.sum().backward()
    for loss, grad in zip(losses, hidden_grads, strict=True):  # each rank has the whole of these
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(grad.double(), x.grad, rtol=1e-5, atol=1e-5)
    for parts, whole, dim in ((logit_grads, logits.grad, -1), (weight_grads, w.grad, 0)):
        torch.testing.assert_close(torch.cat(parts, dim).double(), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_dropout_add_draws_torchs_mask(name, dtype):
    x, bias, residual = (
        torch.randn(19, 70).to(dtype),
        torch.randn(70).to(dtype),
        torch.randn(19, 70).to(dtype),
    )

    def ours(x, bias, residual):
        torch.manual_seed(7)
        return kernels.bias_dropout_add(x, bias, residual, 0.25)

    def composite(x, bias, residual):
        # The mask of the fp32 draw: torch's stream does not depend on the dtype.
        torch.manual_seed(7)
        return residual + torch.nn.functional.dropout(x + bias, 0.25)

    with isa(name):
        check_against_float64(ours, composite, [x, bias, residual], [torch.randn(19, 70)])


def test_bias_dropout_add_without_dropout():
    x, residual = torch.randn(3, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    bias = torch.randn(8, requires_grad=True)
    y = kernels.bias_dropout_add(x, bias, residual, 0.5, training=False)
    assert torch.equal(y, x + bias + residual)
    y.sum().backward()
    assert torch.equal(bias.grad, torch.full((8,), 3.0))
    assert torch.equal(kernels.bias_dropout_add(x, None, residual, 1.0), residual)


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_grad(name, dtype):
    grad, ids = torch.randn(50, 3, 70).to(dtype), torch.randint(0, 12, (50, 3))
    exact = torch.zeros(12, 70, dtype=torch.float64).index_add_(0, ids.flatten(), grad.double().flatten(0, 1))
    with isa(name):
        got = kernels.embedding_grad(grad, ids, 12)
        main_grad = torch.ones(12, 70)
        kernels.embedding_grad(grad, ids, 12, padding_idx=3, out=main_grad)
    assert got.dtype == dtype
    torch.testing.assert_close(
        got.double(), exact, rtol=2 ** (-8 if dtype == torch.bfloat16 else -10), atol=1e-5
    )
    exact[3] = 0
    torch.testing.assert_close(main_grad.double(), exact + 1, rtol=1e-5, atol=1e-5)
    by_frequency = kernels.embedding_grad(grad.float(), ids, 12, scale_grad_by_freq=True)
    expected = torch.ops.aten.embedding_dense_backward(grad.float(), ids, 12, -1, True)
    torch.testing.assert_close(by_frequency, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernels.bias_activation(torch.ones(2), None, "swish"), "unknown activation 'swish'"),
        (lambda: kernels.bias_activation(torch.ones(2, 4), torch.ones(3)), r"bias has shape \(3,\)"),
        (lambda: kernels.bias_glu(torch.ones(2, 5)), "two halves"),
        (lambda: kernels.bias_glu(torch.ones(2, 4), weights=torch.ones(3)), "one value per row"),
        (lambda: kernels.scaled_softmax(torch.ones(2, 4), torch.ones(2, 4)), "must be bool"),
        (lambda: kernels.scaled_softmax(torch.ones(2, 4), torch.ones(3, 4).bool()), "does not broadcast"),
        (lambda: kernels.rope(torch.ones(2, 1, 1, 4), torch.ones(2, 1, 1, 6)), "cannot be rotated"),
        (lambda: kernels.rope(torch.ones(2, 1, 1, 4), torch.ones(1, 1, 1, 4)), "must be .sequence"),
        (
            lambda: kernels.vocab_parallel_cross_entropy(torch.ones(2, 4), torch.ones(3).long()),
            "does not fit",
        ),
        (lambda: kernels.bias_dropout_add(torch.ones(2), None, torch.ones(2), 1.5), "probability"),
        (lambda: kernels.embedding_grad(torch.ones(2, 4), torch.ones(3).long(), 5), "does not fit"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_tensors_of_inference_mode():
    """They keep no version count, by which tables and verdicts are kept: text generation makes such."""
    x, freqs, sums = torch.randn(8, 2, 4, 16), torch.randn(8, 1, 1, 16), torch.tensor([0, 3, 8])
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool).triu(1)
    with torch.inference_mode():
        inside = [t.clone() for t in (x, freqs, sums, mask)]
        turned = kernels.rope(inside[0], inside[1])
        inside[1].add_(1.0)
        moved = kernels.rope(inside[0], inside[1])
        positions = kernels.packed_positions(inside[2], 8)
        causal = mask_is_causal(inside[3], 8, 8)
    assert torch.equal(turned, kernels.rope(x, freqs))
    assert torch.equal(moved, kernels.rope(x, freqs + 1.0))
    assert positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert causal
