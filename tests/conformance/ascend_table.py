"""Writes ASCEND.md: which kernel calls what on Ascend, and how far that was checked.

    python -m tests.conformance.ascend_table [--write]

Without --write the table is printed. A test holds the file against the table in bridge/kernels/dispatch.py,
and the checks against what the tests do.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mindspeed_ms import kernels
from mindspeed_ms.kernels import dispatch

FILE = Path(__file__).with_name("ASCEND.md")

HEAD = """# Kernels on Ascend

Written by `python -m tests.conformance.ascend_table --write`, from the table by which kernels are dispatched
(`bridge/kernels/dispatch.py`). Nothing was run on Ascend hardware. "inference": called by the kernel itself
(`MINDSPEED_MS_KERNELS=ascend` on the CPU target), whose shapes and dtypes MindSpore 2.10 inferred. "signature
only": MindSpore has no inference for the operator. Its arguments are bound to MindSpore's signature; the
kernel calls it on Ascend, and in its place, on the CPU target, a composite of MindSpore operators.

"""

#: Public functions that only put other kernels together, or make integers: they follow their parts.
MADE_OF_KERNELS = (
    "cached_attention",
    "context_parallel_attention",
    "context_parallel_packed_attention",
    "grouped_weight_gradient",
    "latent_key_value",
    "latent_query",
    "linear_cross_entropy",
    "load_balancing_loss",
    "packed_positions",
    "packed_segments",
    "paged_rows",
    "permutation",
)


def without_form() -> list[str]:
    """Public kernels that run as composites in torch operators."""
    known = {"force_implementation", "force_isa", "implementation", "isa", *MADE_OF_KERNELS, *dispatch.FORMS}
    functions = {name for name in kernels.__all__ if not isinstance(getattr(kernels, name), type)}
    return sorted(functions - known)


def rows(forms: dict[str, dispatch.Form]) -> str:
    """The lines of a Markdown table."""
    lines = ["| kernel | MindSpore | forward | backward |", "|---|---|---|---|"]
    lines += [
        f"| `{name}` | {form.operators} | {form.forward_checked} | {form.backward_checked} |"
        for name, form in forms.items()
    ]
    return "\n".join(lines)


def text() -> str:
    """The whole file."""
    composites = ", ".join(f"`{name}`" for name in without_form())
    return (
        f"{HEAD}{rows(dispatch.FORMS)}\n\n"
        "Composites in torch operators, each of which is MindSpore's, with one log line that says so:\n"
        f"{composites};\n"
        "the kernels above for arguments that their operators do not take, which the log line names.\n"
    )


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name}")
    if parser.parse_args().write:
        FILE.write_text(text())
    else:
        print(text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
