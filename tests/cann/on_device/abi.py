"""The types that the simulated operators take are types that MindSpore passes."""

from importlib.util import find_spec
from pathlib import Path

import torch  # noqa: F401 - libopapi.so finds torch's libraries loaded

from tests.cann import abi


def operators_library() -> Path:
    spec = find_spec("mindspore")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "lib/plugin/libmindspore_ops_ascend.so"


def test_every_operator_takes_types_that_mindspore_passes() -> None:
    passed, called = abi.passed_types(operators_library()), abi.called_names(operators_library())
    ours = abi.our_types()
    assert len(passed) > 200
    assert len(ours.keys() & called) > 250
    wrong = {
        name: types
        for name, types in ours.items()
        if name in called and not any(abi.agrees(types, other) for other in passed)
    }
    assert not wrong


def test_the_check_sees_a_wrong_type() -> None:
    passed = abi.passed_types(operators_library())
    cross_entropy = abi.our_types()["aclnnCrossEntropyLoss"]
    documented = tuple("double" if word == "float" else word for word in cross_entropy)
    swapped = (cross_entropy[3], *cross_entropy[:3], *cross_entropy[4:])
    assert any(abi.agrees(cross_entropy, other) for other in passed)
    assert not any(abi.agrees(swapped, other) for other in passed)
    assert documented != cross_entropy
