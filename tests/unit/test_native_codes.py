"""What the C++ side exports for Python: codes of enums, and names of arguments."""

import ast
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mindspeed_ms import _native
from mindspeed_ms.comm.engine import REDUCTIONS
from mindspeed_ms.kernels.backend import DTYPE_CODES


def test_reductions_have_torchs_numbers():
    members = {name: int(op) for name, op in dist.ReduceOp.RedOpType.__members__.items()}
    assert {**members, "none": len(members)} == REDUCTIONS


def test_an_unknown_code_is_a_type_error():
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _native.kernels.sum_all(x=0, y=0, n=0, scale=1.0, dtype=len(DTYPE_CODES), out_dtype=0)


def test_kernels_take_keywords():
    x, y = torch.arange(6.0), torch.empty(())
    code = DTYPE_CODES[x.dtype]
    _native.kernels.sum_all(n=6, scale=0.5, x=x.data_ptr(), y=y.data_ptr(), dtype=code, out_dtype=code)
    assert y.item() == 7.5


def test_every_parameter_of_a_kernel_has_a_name():
    nameless = [
        name
        for module in (_native.kernels, _native.comm)
        for name, value in vars(module).items()
        if callable(value) and "arg0" in (value.__doc__ or "")
    ]
    assert nameless == []


def _is_native(function: ast.expr) -> bool:
    """Whether a call goes to an attribute of one of our extensions."""
    if not isinstance(function, ast.Attribute):
        return False
    while isinstance(function, ast.Attribute):
        function = function.value
    if isinstance(function, ast.Call):
        function = function.func
    return isinstance(function, ast.Name) and function.id in ("native", "_native", "_runtime")


def _positions(call: ast.Call) -> float:
    """Positional arguments that the C++ function gets; without end if some of them are unpacked."""
    if any(isinstance(argument, ast.Starred) for argument in call.args):
        return float("inf")
    return len(call.args)


def _long_calls(source: str) -> list[int]:
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if _is_native(call.func) and _positions(call) > 6]


def test_arguments_beyond_six_are_named():
    root = Path(__file__).parents[2]
    sources = [*root.glob("bridge/**/*.py"), *root.glob("patches/**/*.py")]
    found = {str(file.relative_to(root)): _long_calls(file.read_text()) for file in sources}
    assert {file: lines for file, lines in found.items() if lines} == {}
    assert _long_calls("native().binary(0, 1, 2, 3, 4, 5, 6)\nnative().adam(*columns)") == [1, 2]
    assert _long_calls("native().rope(0, 1, 2, 3, 4, 5)\nother(0, 1, 2, 3, 4, 5, 6)") == []
