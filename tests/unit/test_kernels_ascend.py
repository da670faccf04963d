"""Calls that fit MindSpore's operators, and some that do not, on the operators themselves.

The kernels' own calls are in test_kernels_dispatch.py and tests/distributed/test_ascend_forms.py.
"""

import numpy as np
import pytest
from mindspeed_ms.kernels import ascend, ascend_linear, ascend_moe
from mindspeed_ms.kernels.dispatch import FORMS, SIGNATURE

ms = pytest.importorskip("mindspore", reason="the Ascend calls are MindSpore's")


@pytest.fixture(autouse=True)
def meta():
    # Without it an error of inference would surface in a later test.
    ms.runtime.launch_blocking()
    with ms.DeviceCtx("meta"):
        yield


def tensor(*shape: int, dtype=ms.bfloat16):
    return ms.Tensor(np.zeros(shape, np.float32)).astype(dtype)


def test_the_signature_of_unpermute():
    """All that can be checked of it without the device."""
    rows, places, probs = tensor(20, 32), ms.Tensor(np.zeros(20, np.int32)), tensor(10, 2)
    with pytest.raises(RuntimeError, match="Not implement"):  # its arguments are bound; it has no inference
        ascend_moe.unpermute(rows, places, probs)
    with pytest.raises(TypeError):
        ascend_moe.unpermute(rows, places, "probs")
    inferred = ascend_moe.unpermute_inferred(rows, places, probs)
    assert (inferred.shape, inferred.dtype) == ((10, 32), ms.bfloat16)


def test_only_unpermute_is_held_by_its_signature_alone():
    assert [name for name, form in FORMS.items() if form.forward_checked == SIGNATURE] == ["unpermute"]
    assert [name for name, form in FORMS.items() if form.inferred is not None] == ["unpermute"]
    assert not [name for name, form in FORMS.items() if form.backward_checked == SIGNATURE]


def test_wrong_shapes_are_rejected_by_inference():
    with pytest.raises((ValueError, RuntimeError)):
        ascend.rms_norm(tensor(4, 2, 64), tensor(63))
    with pytest.raises((ValueError, RuntimeError)):
        ascend_linear.column_linear(tensor(8, 32), tensor(16, 31), "tp", 2)
