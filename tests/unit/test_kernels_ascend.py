"""The Ascend calls, forward and backward, through MindSpore's own shape and dtype inference."""

import numpy as np
import pytest
from mindspeed_ms import kernels
from mindspeed_ms.kernels import ascend, ascend_attention, ascend_linear, ascend_moe

ms = pytest.importorskip("mindspore", reason="the Ascend calls are MindSpore's")


@pytest.fixture(autouse=True)
def meta():
    # Without it an error of inference would surface in a later test.
    ms.runtime.launch_blocking()
    with ms.DeviceCtx("meta"):
        yield


def tensor(*shape: int, dtype=ms.bfloat16):
    return ms.Tensor(np.zeros(shape, np.float32)).astype(dtype)


def check(function, inputs, shape, dtype=ms.bfloat16, differentiate=(0,)):
    """Result and gradients have the shapes and dtypes that the kernel promises."""
    y = function(*inputs)
    y = y[0] if isinstance(y, tuple) else y
    assert (y.shape, y.dtype) == (shape, dtype)

    def total(*arguments):
        out = function(*arguments)
        return (out[0] if isinstance(out, tuple) else out).sum()

    if differentiate:
        grads = ms.grad(total, grad_position=differentiate)(*inputs)
        grads = grads if isinstance(grads, tuple) else (grads,)
        for grad, position in zip(grads, differentiate, strict=True):
            assert (grad.shape, grad.dtype) == (inputs[position].shape, inputs[position].dtype)


X, W = (4, 2, 64), (64,)


@pytest.mark.parametrize("zero_centered", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_norms(zero_centered, residual):
    extra = [tensor(*X)] if residual else []

    def rms(x, w, *r):
        return ascend.rms_norm(x, w, zero_centered=zero_centered, residual=r[0] if r else None)

    def layer(x, w, b, *r):
        return ascend.layer_norm(x, w, b, zero_centered=zero_centered, residual=r[0] if r else None)

    check(rms, [tensor(*X), tensor(*W), *extra], X, differentiate=(0, 1))
    check(layer, [tensor(*X), tensor(*W), tensor(*W), *extra], X, differentiate=(0, 1, 2))


@pytest.mark.parametrize("activation", kernels.activation.ACTIVATIONS)
def test_activations(activation):
    check(
        lambda x, b: ascend.bias_activation(x, b, activation),
        [tensor(*X), tensor(*W)],
        X,
        differentiate=(0, 1),
    )
    check(lambda x: ascend.bias_glu(x, None, activation), [tensor(*X)], (4, 2, 32))
    check(
        lambda x, b, w: ascend.bias_glu(x, b, activation, weights=w, linear_offset=1.0, clamp=7.0),
        [tensor(*X), tensor(*W), tensor(4, 2, 1, dtype=ms.float32)],
        (4, 2, 32),
        differentiate=(0, 1, 2),
    )


def test_softmax():
    scores, mask = tensor(2, 3, 5, 7), ms.Tensor(np.ones((2, 1, 5, 7), bool))
    check(lambda x: ascend.scaled_softmax(x, mask, 0.5), [scores], (2, 3, 5, 7))
    check(lambda x: ascend.scaled_softmax(x, None, 0.5, causal=True), [scores], (2, 3, 5, 7))


@pytest.mark.parametrize("layout", ["half", "interleaved", "to_half"])
@pytest.mark.parametrize("rotary", [64, 32])
def test_rope(layout, rotary):
    angles = tensor(8, 1, 1, rotary, dtype=ms.float32)
    check(lambda x: ascend.rope(x, angles, angles, layout), [tensor(8, 2, 4, 64)], (8, 2, 4, 64))


def test_cross_entropy():
    target = ms.Tensor(np.zeros(8, np.int64))
    check(
        lambda x: ascend.vocab_parallel_cross_entropy(x, target, 0.1),
        [tensor(8, 32, dtype=ms.float32)],
        (8,),
        ms.float32,
    )


def test_dropout_and_embedding():
    check(
        lambda x, r: ascend.bias_dropout_add(x, None, r, 0.1),
        [tensor(*X), tensor(*X)],
        X,
        differentiate=(0, 1),
    )
    ids = ms.Tensor(np.zeros(8, np.int64))
    check(
        lambda g: ascend.embedding_grad(g, ids, 10),
        [tensor(8, 32, dtype=ms.float32)],
        (10, 32),
        ms.float32,
        differentiate=(),
    )


def test_optimizer():
    p, g, m, v = (tensor(128, dtype=ms.float32) for _ in range(4))
    step = tensor(1, dtype=ms.float32)
    ascend.adam_step(p, g, m, v, step, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    with pytest.raises((ValueError, RuntimeError, TypeError)):
        ascend.adam_step(p, tensor(64, dtype=ms.float32), m, v, step, lr=1e-3, betas=(0.9, 0.999), eps=1e-8,
                         weight_decay=0.1)  # fmt: skip
    check(ascend.l2_norm, [p], (), ms.float32)


@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"causal": True, "window": (3, 0)}, {"dropout": 0.1}]
)
def test_attention(options):
    def run(q, k, v):
        return ascend_attention.attention(q, k, v, scale=0.1, **options)

    inputs = [tensor(8, 2, 4, 64), tensor(10, 2, 2, 64), tensor(10, 2, 2, 32)]
    check(run, inputs, (8, 2, 4, 32), differentiate=(0, 1, 2))
    assert run(*inputs)[1].shape == (2, 4, 8)
    mask = ms.Tensor(np.zeros((2, 1, 8, 10), bool))
    check(lambda q, k, v: ascend_attention.attention(q, k, v, mask=mask), inputs, (8, 2, 4, 32))


def test_attention_of_packed_sequences():
    inputs = [tensor(20, 4, 64), tensor(20, 2, 64), tensor(20, 2, 64)]
    ends = {"cu_seqlens_q": (5, 20), "causal": True}
    check(
        lambda q, k, v: ascend_attention.attention(q, k, v, **ends),
        inputs,
        (20, 4, 64),
        differentiate=(0, 1, 2),
    )
    assert ascend_attention.attention(*inputs, **ends)[1].shape == (20, 4)


@pytest.mark.parametrize("causal", [False, True])
def test_steps_of_a_ring(causal):
    inputs = [tensor(8, 2, 4, 64), tensor(8, 2, 2, 64), tensor(8, 2, 2, 64)]
    step = ascend_attention.ring_step(*inputs, causal=causal, scale=0.1)
    assert [t.shape for t in step] == [(8, 2, 256), (2, 4, 8, 8), (2, 4, 8, 8)]
    merged = ascend_attention.ring_merge(step, step)
    assert [(t.shape, t.dtype) for t in merged] == [(t.shape, t.dtype) for t in step]
    grads = ascend_attention.ring_step_backward(*inputs, step[0], merged, causal=causal, scale=0.1)
    assert [(g.shape, g.dtype) for g in grads] == [(t.shape, t.dtype) for t in inputs]


def test_latent_rope():
    angles = tensor(8, 1, 1, 16, dtype=ms.float32)
    check(lambda q: ascend_attention.latent_query(q, angles, angles), [tensor(8, 2, 4, 48)], (8, 2, 4, 48))

    def key(kv, position):
        return ascend_attention.latent_key_value(kv, position, angles, angles, 32)

    pair = [tensor(8, 2, 4, 80), tensor(8, 2, 1, 16)]
    check(key, pair, (8, 2, 4, 48), differentiate=(0, 1))
    assert key(*pair)[1].shape == (8, 2, 4, 48)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pre_softmax": True, "scaling_factor": 2.0},
        {"score_function": "sigmoid", "groups": 4, "group_topk": 2},
    ],
)
def test_router(options):
    logits = tensor(10, 16, dtype=ms.float32)
    check(lambda x: ascend_moe.topk_router(x, 4, **options), [logits], (10, 16), ms.float32)
    numbers = ascend_moe.topk_router(logits, 4, **options)[1]
    assert (numbers.shape, numbers.dtype) == ((10, 4), ms.int32)


def test_token_permutation():
    tokens, experts, rows = tensor(10, 32), ms.Tensor(np.zeros((10, 2), np.int32)), tensor(20, 32)
    check(lambda x: ascend_moe.permute(x, experts), [tokens], (20, 32))
    places, probs = ms.Tensor(np.zeros(20, np.int32)), tensor(10, 2)
    with pytest.raises(RuntimeError, match="Not implement"):  # accepted by its signature; no inference
        ascend_moe.unpermute(rows, places, probs)
    grads = ascend_moe.unpermute_backward(rows, tokens, places, probs)
    assert [g.shape for g in grads] == [(20, 32), (10, 2)]
    check(lambda x: ascend_moe.gather_rows(x, places), [tokens], (20, 32))
    check(
        lambda x, w: ascend_moe.combine_rows(x, places, 10, w),
        [rows, tensor(20, dtype=ms.float32)],
        (10, 32),
        differentiate=(0, 1),
    )


@pytest.mark.parametrize("turned", [False, True])
def test_grouped_products(turned):
    rows, ends = tensor(20, 32), ms.Tensor(np.array([4, 12, 20]), ms.int64)
    weights = tensor(3, 16, 32) if turned else tensor(3, 32, 16)
    y = ascend_moe.grouped_matmul(rows, weights, ends, turned=turned)
    assert (y.shape, y.dtype) == ((20, 16), ms.bfloat16)
    dx, dweights = ascend_moe.grouped_matmul_backward(rows, weights, ends, y, turned=turned)
    assert (dx.shape, dweights.shape, dweights.dtype) == (rows.shape, weights.shape, ms.float32)


def test_sequence_parallel_linear_layers():
    x, weight = tensor(8, 32), tensor(16, 32)
    y, gathered = ascend_linear.column_linear(x, weight, "tp", 2)
    assert (y.shape, gathered.shape) == ((16, 16), (16, 32))
    assert ascend_linear.column_linear_backward(y, weight, "tp", 2).shape == x.shape
    y = ascend_linear.row_linear(gathered, weight, "tp", 2)
    assert y.shape == (8, 16)
    dx, grads = ascend_linear.row_linear_backward(y, weight, "tp", 2)
    assert (dx.shape, grads.shape) == ((16, 32), (16, 16))
    main_grad = tensor(16, 32, dtype=ms.float32)
    total = ascend_linear.accumulate_weight_gradient(gathered, grads, main_grad)
    assert (total.shape, total.dtype) == (weight.shape, ms.float32)
    with pytest.raises((ValueError, RuntimeError)):
        ascend_linear.column_linear(x, tensor(16, 31), "tp", 2)


def test_wrong_shapes_are_rejected_by_inference():
    with pytest.raises((ValueError, RuntimeError)):
        ascend.rms_norm(tensor(*X), tensor(63))


def test_every_kernel_has_its_ascend_form():
    without = {"sgd_step", "multi_scale", "clip_by_norm_", "newton_schulz"}  # compositions of plain operators
    # Compositions of attention with collectives; ring_step and its kin are the operators beneath.
    without |= {"context_parallel_attention", "context_parallel_packed_attention"}
    # Of the router's, of matrix products and of cross entropy; and what makes their integer arguments.
    without |= {"auxiliary_scores", "load_balancing_loss", "grouped_weight_gradient", "linear_cross_entropy"}
    without |= {"permutation", "packed_positions", "packed_segments"}
    functions = {n for n in kernels.__all__ if not n.startswith(("force_", "isa", "implementation"))}
    functions = {name for name in functions if not isinstance(getattr(kernels, name), type)}
    assert functions - without == set(ascend.CALLS)
