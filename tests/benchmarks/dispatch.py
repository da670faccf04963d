"""Cost of dispatch: an npu op over the same MindSpore op called natively, and a host-route op over plain CPU
torch.

    python -m tests.benchmarks.dispatch [--quick] [--json FILE]

add, mm 4 x 4 and view, whose kernels take next to no time, so that the ratio is the bridge's overhead. Marks:
at most 1.3 times MindSpore (route mindspore), at most 2 times torch (route host). view has no route: torch's
own function runs.

Then a fused kernel, rms_norm of 8 x 64, forward and with its gradient: the call of an operator of ours, its
choice of a form and its counting, over torch's own rms_norm on CPU tensors. Mark: at most 3 times torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import mindspeed_ms.patch  # noqa: F401 - switches the device on
from mindspeed_ms.device import to_mindspore
from mindspeed_ms.kernels import rms_norm
from mindspeed_ms.ops.routes import route
from torch.nn.functional import rms_norm as rms_norm_of_torch

from tests.benchmarks.report import Report, arguments, paired

NATIVE_MARK, HOST_MARK, KERNEL_MARK = 1.3, 2.0, 3.0


def operations() -> dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]]:
    """Name -> (torch call, the fastest MindSpore call of the same operator that was found)."""
    from mindspore.ops import auto_generate as ag

    matmul = ag.MatMul(False, False)
    return {
        "add": (lambda x, y: x + y, ag.add),
        "mm 4x4": (torch.mm, matmul),
        "view": (lambda x, y: x.view(16), lambda x, y: x.view(16)),
    }


def kernel_call(device: str, function: Callable[..., torch.Tensor], gradient: bool) -> Callable[[], Any]:
    """A call of a norm on a small tensor."""
    x, weight = torch.ones(8, 64).to(device), torch.ones(64).to(device)
    if not gradient:
        return lambda: function(x, weight)
    leaves = x.requires_grad_(), weight.requires_grad_()
    dy = torch.ones(8, 64).to(device)
    return lambda: torch.autograd.grad(function(*leaves), leaves, dy)


def main() -> int:
    parser = arguments(__doc__)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = Report("dispatch", "us per call of a 4 x 4 operator", options)
    repeats, inner = (31, 100) if options.quick else (101, 200)
    cpu = torch.rand(4, 4), torch.rand(4, 4)
    npu = tuple(t.to("npu") for t in cpu)
    lent = tuple(map(to_mindspore, npu))
    for name, (run, native) in operations().items():
        with route("strict"):
            measured = paired(lambda: run(*npu), lambda: native(*lent), repeats, inner)  # noqa: B023
        row = {"op": name, "npu_us": measured.first * 1e6, "mindspore_us": measured.second * 1e6}
        row["over_mindspore"] = measured.ratio
        report.mark(
            f"{name} at most {NATIVE_MARK} x MindSpore",
            measured.ratio <= NATIVE_MARK,
            f"{measured.ratio:.2f}",
        )
        with route("host"):
            measured = paired(lambda: run(*npu), lambda: run(*cpu), repeats, inner)  # noqa: B023
        row |= {"host_us": measured.first * 1e6, "cpu_us": measured.second * 1e6, "over_cpu": measured.ratio}
        report.mark(
            f"{name} at most {HOST_MARK} x torch CPU", measured.ratio <= HOST_MARK, f"{measured.ratio:.2f}"
        )
        report.row(**row)
    for name, gradient in (("rms_norm", False), ("rms_norm, gradient", True)):
        ours = kernel_call("npu", rms_norm, gradient)
        theirs = kernel_call("cpu", lambda x, weight: rms_norm_of_torch(x, (64,), weight), gradient)
        measured = paired(ours, theirs, repeats, inner)
        row = {"op": name, "npu_us": measured.first * 1e6, "cpu_us": measured.second * 1e6}
        report.row(**row, over_cpu=measured.ratio)
        report.mark(
            f"{name} at most {KERNEL_MARK} x torch CPU",
            measured.ratio <= KERNEL_MARK,
            f"{measured.ratio:.2f}",
        )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
