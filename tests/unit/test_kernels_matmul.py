"""Products on MindSpore's oneDNN against float64: layouts, both ways for bfloat16, in place, in stacks."""

import mindspeed_ms.patch  # noqa: F401
import pytest
import torch
from mindspeed_ms.kernels import matmul
from mindspeed_ms.kernels.backend import native
from mindspeed_ms.kernels.weight_gradient import accumulate_weight_gradient
from mindspeed_ms.routes import coverage

pytestmark = pytest.mark.skipif(not matmul.available(), reason="this MindSpore ships no libdnnl.so.3")

#: Largest error relative to the largest value: of float32 sums, and of one rounding to the result's dtype.
ERROR = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
SIZES = [
    (1, 1, 1),
    (3, 5, 7),
    (64, 1, 130),
    (1, 200, 33),
    (130, 257, 96),
    (700, 40, 3000),
    (40, 700, 3000),
    (2100, 24, 2500),
]


def close(found: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    scale = exact.abs().max().clamp_min(1e-3)
    assert ((found.double() - exact).abs().max() / scale).item() <= ERROR[dtype]


def matrix(rows: int, cols: int, dtype: torch.dtype, layout: str) -> torch.Tensor:
    """Random (rows, cols): contiguous, transposed, a slice of wider rows, or with no unit stride."""
    if layout == "transposed":
        return torch.randn(cols, rows).to(dtype).t()
    if layout == "slice":
        return torch.randn(rows, cols + 3).to(dtype)[:, 1 : cols + 1]
    if layout == "strided":
        return torch.randn(rows, 2 * cols).to(dtype)[:, ::2]
    return torch.randn(rows, cols).to(dtype)


@pytest.fixture(params=[False, True], ids=["bfloat16 kernel", "widened"])
def widen(request):
    """Both ways to multiply bfloat16, whichever this CPU prefers."""
    matmul._loaded()
    before = native().gemm_widens_bfloat16()
    native().gemm_widen_bfloat16(request.param)
    yield request.param
    native().gemm_widen_bfloat16(before)


@pytest.mark.parametrize("dtype", list(ERROR))
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_layouts_agree_with_float64(widen, dtype, m, n, k):
    torch.manual_seed(0)
    for left in ("contiguous", "transposed", "slice", "strided"):
        for right in ("contiguous", "transposed", "slice"):
            a, b = matrix(m, k, dtype, left), matrix(k, n, dtype, right)
            exact = a.double() @ b.double()
            close(matmul.product(a, b), exact, dtype)
            for out_dtype in {dtype, torch.float32}:
                out = torch.randn(m, n).to(out_dtype)
                expected = 0.5 * exact + 2.0 * out.double()
                matmul.multiply_into(out, a, b, alpha=0.5, beta=2.0)
                close(out, expected, out_dtype)


@pytest.mark.parametrize("dtype", list(ERROR))
def test_stacks_and_broadcast_sums(dtype):
    a, b = torch.randn(3, 17, 20).to(dtype), torch.randn(3, 9, 20).to(dtype).transpose(1, 2)
    close(matmul.product(a, b), a.double() @ b.double(), dtype)
    bias = torch.randn(9).to(dtype)
    close(matmul.add_product(bias, a[0], b[0], 1, 1), bias.double() + a[0].double() @ b[0].double(), dtype)
    ignored = torch.full((9,), float("nan")).to(dtype)
    close(matmul.add_product(ignored, a[0], b[0], 0, 1), a[0].double() @ b[0].double(), dtype)
    assert matmul.product(a, b[:2]) is NotImplemented
    assert matmul.add_product(torch.randn(2, 9).to(dtype), a[0], b[0], 1, 1) is NotImplemented


def test_expanded_operands():
    """One row or column seen many times has a stride of 0, which is no leading dimension."""
    row, column, b = torch.randn(1, 7), torch.randn(5, 1), torch.randn(7, 3)
    close(matmul.product(row.expand(4, 7), b), row.expand(4, 7).double() @ b.double(), torch.float32)
    wide = column.expand(5, 7)
    close(matmul.product(wide, b), wide.double() @ b.double(), torch.float32)
    one = torch.randn(1, 1).expand(6, 1)
    close(matmul.product(one, b[:1]), one.double() @ b[:1].double(), torch.float32)


def test_nan_and_infinity_come_through():
    a = torch.ones(4, 8, dtype=torch.bfloat16)
    a[1, 2], a[2, 3] = float("nan"), float("inf")
    out = matmul.product(a, torch.ones(8, 3, dtype=torch.bfloat16))
    assert out[1].isnan().all()
    assert out[2].isinf().all()
    assert (out[0] == 8).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_addmm_in_place_writes_where_it_lies(dtype):
    a, b = torch.randn(300, 64).to(dtype), torch.randn(300, 310).to(dtype)
    x = torch.randn(64, 310).to(dtype)
    lent = x.to("npu")
    before = lent.data_ptr()
    coverage.reset()
    lent.addmm_(a.to("npu").t(), b.to("npu"))
    (row,) = [r for r in coverage.snapshot() if r["op"] == "aten::addmm_"]
    assert row["route"] == "csrc"
    assert lent.data_ptr() == before
    close(lent.cpu(), x.double() + a.double().t() @ b.double(), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_gradient_accumulates_in_float32(dtype):
    x, grad = torch.randn(6, 5, 24).to(dtype), torch.randn(6, 5, 40).to(dtype)
    main_grad = torch.randn(40, 24)
    exact = main_grad.double() + grad.double().reshape(30, 40).t() @ x.double().reshape(30, 24)
    lent = main_grad.to("npu")
    accumulate_weight_gradient(x.to("npu"), grad.to("npu"), lent)
    close(lent.cpu(), exact, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("layout", ["transposed", "columns", "no rows"])
def test_weight_gradient_into_what_is_not_contiguous(layout, wide, dtype):
    """Also into a 16-bit buffer, and of no rows: what lies beside the buffer, and what is in it, stays."""
    rows = 0 if layout == "no rows" else 30
    x, grad = torch.randn(rows, 24).to(dtype).to("npu"), torch.randn(rows, 40).to(dtype).to("npu")
    whole = torch.randn(40, 48).to(torch.float32 if wide else dtype).to("npu")
    main_grad = whole.view(48, 40)[:24].t() if layout == "transposed" else whole[:, :24]
    before = whole.clone()
    expected = main_grad.cpu().double() + grad.cpu().double().t() @ x.cpu().double()
    accumulate_weight_gradient(x, grad, main_grad)
    close(main_grad.cpu(), expected, main_grad.dtype)
    beside = [t.view(48, 40)[24:] if layout == "transposed" else t[:, 24:] for t in (whole, before)]
    assert torch.equal(*beside)
