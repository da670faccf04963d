"""Cost of dispatch: an npu op over the same MindSpore op called natively, and a host-route op over plain CPU
torch.

    python -m tests.benchmarks.dispatch [--quick] [--json FILE]

add, mm 4 x 4 and view, whose kernels take next to no time, so that the ratio is the bridge's overhead. Marks:
at most 1.3 times MindSpore (route mindspore), at most 2 times torch (route host). view has no route: torch's
own function runs.
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
from mindspeed_ms.ops.routes import route

from tests.benchmarks.report import Report, arguments, paired

NATIVE_MARK, HOST_MARK = 1.3, 2.0


def operations() -> dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]]:
    """Name -> (torch call, the fastest MindSpore call of the same operator that was found)."""
    from mindspore.ops import auto_generate as ag

    matmul = ag.MatMul(False, False)
    return {
        "add": (lambda x, y: x + y, ag.add),
        "mm 4x4": (torch.mm, matmul),
        "view": (lambda x, y: x.view(16), lambda x, y: x.view(16)),
    }


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
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
