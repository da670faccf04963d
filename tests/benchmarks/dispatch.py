"""Cost of dispatch: calls on npu tensors so small that their kernels take next to no time.

    python -m tests.benchmarks.dispatch [--quick] [--json FILE]

Operators over the same MindSpore operator called natively (at most 1.3 times), and on route host over plain
CPU torch (at most 2 times); view has no route: torch's own function runs. Fused kernels over torch's own
fused operator on CPU, forward and, where gradients are asked for, backward: shown without a mark.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import mindspeed_ms.patch  # noqa: F401 - switches the device on
from mindspeed_ms import kernels
from mindspeed_ms.device import to_mindspore
from mindspeed_ms.routes import route

from tests.benchmarks.report import Report, arguments, paired

NATIVE_MARK, HOST_MARK = 1.3, 2.0


@dataclass(frozen=True)
class Comparison:
    """One row: a call of ours on a route, over a call of something else that does the same.

    ``over`` names the other side; ``mark``: the largest ratio that is met, None where there is no mark.
    """

    name: str
    route: str
    ours: Callable[[], Any]
    other: Callable[[], Any]
    over: str
    mark: float | None = None


def operators() -> Iterator[Comparison]:
    """aten operators on 4 x 4 matrices, over the fastest MindSpore call that was found and over torch's."""
    from mindspore.ops import auto_generate as ag

    cpu = torch.rand(4, 4), torch.rand(4, 4)
    npu = tuple(t.to("npu") for t in cpu)
    lent = tuple(map(to_mindspore, npu))
    matmul = ag.MatMul(False, False)
    calls: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "add": (lambda x, y: x + y, ag.add),
        "mm": (torch.mm, matmul),
        "view": (lambda x, y: x.view(16), lambda x, y: x.view(16)),
    }
    for name, (run, native) in calls.items():
        ours = bound(run, *npu)
        yield Comparison(name, "strict", ours, bound(native, *lent), "MindSpore", NATIVE_MARK)
        yield Comparison(name, "host", ours, bound(run, *cpu), "torch CPU", HOST_MARK)


def kernel_calls() -> Iterator[Comparison]:
    """Fused kernels on 4 x 4 matrices, over torch's operator of the same name."""
    x, weight, bias = torch.rand(4, 4), torch.rand(4), torch.rand(4)
    cpu = x, weight, bias
    npu = tuple(t.to("npu") for t in cpu)

    def ours(*inputs: torch.Tensor) -> torch.Tensor:
        return kernels.layer_norm(*inputs, 1e-5)

    def theirs(*inputs: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(inputs[0], (4,), *inputs[1:], 1e-5)

    yield Comparison("layer_norm", "auto", bound(ours, *npu), bound(theirs, *cpu), "torch CPU")
    forward_backward = differentiated(ours, npu), differentiated(theirs, cpu)
    yield Comparison("layer_norm, forward and backward", "auto", *forward_backward, "torch CPU")


def bound(function: Callable[..., Any], *inputs: Any) -> Callable[[], Any]:
    """The call without arguments."""
    return lambda: function(*inputs)


def differentiated(
    function: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]
) -> Callable[[], Any]:
    """Forward and backward of one call."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    grad = torch.ones_like(function(*leaves))
    return lambda: torch.autograd.grad(function(*leaves), leaves, grad)


def main() -> int:
    """Command line; returns the exit code."""
    parser = arguments(__doc__)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = Report("dispatch", "us per call on 4 x 4 matrices", options)
    repeats, inner = (31, 100) if options.quick else (101, 200)
    for each in (*operators(), *kernel_calls()):
        with route(each.route):
            measured = paired(each.ours, each.other, repeats, inner)
        report.row(
            call=each.name,
            route=each.route,
            npu_us=measured.first * 1e6,
            over=each.over,
            other_us=measured.second * 1e6,
            ratio=measured.ratio,
        )
        if each.mark is not None:
            what = f"{each.name} at most {each.mark} x {each.over}"
            report.mark(what, measured.ratio <= each.mark, f"{measured.ratio:.2f}")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
