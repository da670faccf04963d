"""Group "rules": sentences that hold of every correct device, each a row that fails when one does not."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from mindspeed_ms.commands.selftest.rows import FLOATS, GRADIENT, RESULT, Case, Check
from mindspeed_ms.kernels.operator import OPERATORS


def _causal(check: Check) -> None:
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(16, 1, 2, 32, generator=generator).bfloat16() for _ in range(3))
    later = [x.clone() for x in (key, value)]
    for x in later:
        x[9:] = -3.0

    def attend(*tensors: torch.Tensor) -> torch.Tensor:
        options = ("sbhd", 0.2, 0.0, -1, 0, None, None, 0, 0, False)
        out, *_ = OPERATORS["attention"](*(x.to("npu") for x in tensors), None, *options)
        return out.cpu().view(16, 1, 2, 32)

    before, after = attend(query, key, value), attend(query, *later)
    check.close("the first row is the first value", before[0], value[0], RESULT[torch.bfloat16])
    check.equal("rows before a changed key", after[:9], before[:9])
    check.require(not after[9:].equal(before[9:]), "rows after a changed key do not see it")


def _view(check: Check) -> None:
    for dtype in FLOATS:
        x, expected = torch.zeros(6, 8, dtype=dtype, device="npu"), torch.zeros(6, 8, dtype=dtype)
        for tensor in (x, expected):
            part = torch.arange(12, dtype=dtype).view(3, 4).to(tensor.device)
            tensor[1:4, ::2].copy_(part)
            tensor[5] = 7
            tensor.t()[3].add_(2)
            tensor.view(-1)[9:13].mul_(3)
        check.equal(f"{dtype}", x, expected)


def _bias(check: Check) -> None:
    generator = torch.Generator().manual_seed(2)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((6, 5, 16), (8, 16), (8,)))
    for dtype in FLOATS:
        grads = {}
        for device, type_ in (("npu", dtype), ("cpu", torch.float64)):
            inputs = [t.to(dtype).to(type_).to(device) for t in (x, weight, bias)]
            leaves = [t.requires_grad_() for t in inputs]
            shape = (16,)
            scale, shift = (
                torch.full(shape, v, dtype=type_, device=device).requires_grad_() for v in (1.0, 0.5)
            )
            y = F.linear(F.layer_norm(leaves[0], shape, scale, shift), *leaves[1:])
            y.backward(torch.cos(torch.arange(y.numel())).view(y.shape).to(dtype).to(type_).to(device))
            grads[device] = leaves[2].grad, shift.grad
        for what, found, expected in zip(("linear", "layer_norm"), grads["npu"], grads["cpu"], strict=True):
            assert found is not None
            assert expected is not None
            check.close(f"bias of {what}, {dtype}", found, expected, GRADIENT[dtype])


def _sums(check: Check) -> None:
    for dtype in FLOATS:
        rows, columns = torch.ones(16, 512, dtype=dtype), torch.full((512, 16), 16.0, dtype=dtype)
        expected = torch.full((16, 16), 8192.0)
        a, b = rows.to("npu"), columns.to("npu")
        check.equal(f"mm, {dtype}", (a @ b).float(), expected)
        check.equal(f"bmm, {dtype}", torch.bmm(a[None], b[None])[0].float(), expected)
        check.equal(f"sum, {dtype}", b.view(16, 512).sum(1).float(), expected[0])


def _order(check: Check) -> None:
    x = torch.ones(1 << 16, device="npu")
    y = x
    for _ in range(10):
        y = y + 1
    y = x + y
    x.copy_(torch.full((1 << 16,), 100.0))
    check.equal("what was launched before a copy", y, torch.full((1 << 16,), 12.0))
    check.equal("what was launched after it", x + 0, torch.full((1 << 16,), 100.0))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        z = y * 2
    torch.cuda.current_stream().wait_stream(side)
    check.equal("what another stream made", z + 1, torch.full((1 << 16,), 25.0))


def _extremes(check: Check) -> None:
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([[1.0, nan, inf], [-inf, 2.0, -2.0], [0.0, 0.0, -0.0]])
    for dtype in FLOATS:
        there, here = x.to(dtype).to("npu"), x.to(dtype).double()
        for name in ("exp", "abs", "relu", "sigmoid", "isnan", "isfinite"):
            check.close(
                f"{name}, {dtype}", getattr(torch, name)(there), getattr(torch, name)(here), 4 * RESULT[dtype]
            )
        check.close(f"softmax, {dtype}", there.softmax(-1), here.softmax(-1), 4 * RESULT[dtype])
        check.close(f"sum, {dtype}", there.sum(-1), here.sum(-1), RESULT[dtype])


def _random(check: Check) -> None:
    drawn = []
    for _ in range(2):
        torch.cuda.manual_seed(5)
        drawn.append(torch.randn(1 << 16, device="npu").cpu())
    check.equal("the same seed", drawn[1], drawn[0])
    mean, deviation = drawn[0].mean().item(), drawn[0].std().item()
    # four standard errors of 65536 numbers
    check.require(
        abs(mean) < 0.016 and abs(deviation - 1) < 0.012, f"mean {mean:.3f}, deviation {deviation:.3f}"
    )
    kept = F.dropout(torch.ones(1 << 16, device="npu"), 0.25).cpu()
    check.require(abs((kept == 0).float().mean().item() - 0.25) < 0.007, "dropout does not drop a quarter")


def cases(group: str) -> Iterator[Case]:
    """One case for each sentence."""
    yield Case("a causal mask hides later keys, and only those", _causal)
    yield Case("a write into a view reaches the tensor behind it", _view)
    yield Case("the gradient of a bias is the sum over rows", _bias)
    yield Case("products and sums of 16-bit numbers are summed in float32", _sums)
    yield Case("copies and streams keep the order of what was launched", _order)
    yield Case("NaN and infinity stay where they are", _extremes)
    yield Case("random numbers follow the seed and their distribution", _random)
