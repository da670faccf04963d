"""What the C++ side exports for Python: codes of enums, and names of arguments."""

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
