"""Ascend operators that no kernel calls yet, through MindSpore's own shape and dtype inference.

Those that kernels call are run by the kernels, in test_kernels_dispatch.py.
"""

import numpy as np
import pytest
from mindspeed_ms.kernels import ascend, ascend_attention, ascend_linear, ascend_moe
from mindspeed_ms.kernels.dispatch import FORMS, SIGNATURE, UNCALLED

ms = pytest.importorskip("mindspore", reason="the Ascend calls are MindSpore's")


@pytest.fixture(autouse=True)
def meta():
    # Without it an error of inference would surface in a later test.
    ms.runtime.launch_blocking()
    with ms.DeviceCtx("meta"):
        yield


def tensor(*shape: int, dtype=ms.bfloat16):
    return ms.Tensor(np.zeros(shape, np.float32)).astype(dtype)


@pytest.mark.parametrize("causal", [False, True])
def test_steps_of_a_ring(causal):
    inputs = [tensor(8, 2, 4, 64), tensor(8, 2, 2, 64), tensor(8, 2, 2, 64)]
    step = ascend_attention.ring_step(*inputs, causal=causal, scale=0.1)
    assert [t.shape for t in step] == [(8, 2, 256), (2, 4, 8, 8), (2, 4, 8, 8)]
    merged = ascend_attention.ring_merge(step, step)
    assert [(t.shape, t.dtype) for t in merged] == [(t.shape, t.dtype) for t in step]
    grads = ascend_attention.ring_step_backward(*inputs, step[0], merged, causal=causal, scale=0.1)
    assert [(g.shape, g.dtype) for g in grads] == [(t.shape, t.dtype) for t in inputs]


def test_token_permutation():
    tokens, experts, rows = tensor(10, 32), ms.Tensor(np.zeros((10, 2), np.int32)), tensor(20, 32)
    permuted = ascend_moe.permute(tokens, experts)[0]
    assert (permuted.shape, permuted.dtype) == ((20, 32), ms.bfloat16)
    grad = ms.grad(lambda x: ascend_moe.permute(x, experts)[0].sum())(tokens)
    assert (grad.shape, grad.dtype) == (tokens.shape, tokens.dtype)
    places, probs = ms.Tensor(np.zeros(20, np.int32)), tensor(10, 2)
    assert UNCALLED["unpermute"].forward_checked == SIGNATURE
    with pytest.raises(RuntimeError, match="Not implement"):  # its arguments are bound; it has no inference
        ascend_moe.unpermute(rows, places, probs)
    with pytest.raises(TypeError):
        ascend_moe.unpermute(rows, places, "probs")
    grads = ascend_moe.unpermute_backward(rows, tokens, places, probs)
    assert [g.shape for g in grads] == [(20, 32), (10, 2)]


def test_sequence_parallel_linear_layers():
    x, weight = tensor(8, 32), tensor(16, 32)
    y, gathered = ascend_linear.column_linear(x, weight, "tp", 2)
    assert (y.shape, gathered.shape) == ((16, 16), (16, 32))
    assert ascend_linear.column_linear_backward(y, weight, "tp", 2).shape == x.shape
    y = ascend_linear.row_linear(gathered, weight, "tp", 2)
    assert y.shape == (8, 16)
    dx, grads = ascend_linear.row_linear_backward(y, weight, "tp", 2)
    assert (dx.shape, grads.shape) == ((16, 32), (16, 16))
    with pytest.raises((ValueError, RuntimeError)):
        ascend_linear.column_linear(x, tensor(16, 31), "tp", 2)


def test_wrong_shapes_are_rejected_by_inference():
    with pytest.raises((ValueError, RuntimeError)):
        ascend.rms_norm(tensor(4, 2, 64), tensor(63))


def test_only_unpermute_is_held_by_its_signature_alone():
    """A form that the tests above could not infer would have to be said to be so, and the other way round."""
    assert [name for name, form in UNCALLED.items() if form.forward_checked == SIGNATURE] == ["unpermute"]
    assert not [
        name for name, form in FORMS.items() if SIGNATURE in (form.forward_checked, form.backward_checked)
    ]
