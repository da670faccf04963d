"""``mindspeed-ms calibrate``: measure which route of each operator is fastest, for route ``auto``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "measure for some minutes which kernels are fastest here; later runs use the result"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``calibrate``."""
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there; default: for this machine")
    parser.add_argument("--only", nargs="*", metavar="OPERATOR", help="measure these; the others stay")
    parser.add_argument("--dtypes", nargs="*", metavar="DTYPE", help="measure these dtypes")


def execute(options: argparse.Namespace) -> int:
    """Measure, and write the table that :mod:`mindspeed_ms.ops.auto` reads."""
    import mindspeed_ms.patch  # noqa: F401
    import torch
    from mindspeed_ms import _runtime
    from mindspeed_ms.ops import auto, calibrate, registry

    _runtime.ensure_initialized()  # fills the table of lowerings
    routes = json.loads(auto.path().read_text())["routes"] if options.only else {}
    names = options.only or sorted(registry.table)
    for name in names:
        routes.pop(name, None)
    dtypes = [getattr(torch, name) for name in options.dtypes] if options.dtypes else calibrate.MEASURED
    routes |= calibrate.calibrate(names, dtypes)
    file = options.output or auto.measured()
    calibrate.write(routes, file)
    print(f"routes measured on this machine are kept in {file}", flush=True)
    return 0
