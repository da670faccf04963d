"""The extensions on aarch64: cross-compiled here, run by qemu; skipped with a reason without the tools."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from . import build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

#: MindSpore's oneDNN within the site: its products are called.
ONEDNN = "mindspore/lib/libdnnl.so.3"

DEVICE = "tests/unit/test_device.py"
#: Left out, as they are not about the package here: torch's CUDA build refuses one sparse tensor in its own
#: words, torch.compile calls the host's g++, the others start this Python, which needs qemu before its name.
LEFT_OUT = (
    "sparse_tensors_are_refused_in_one_sentence[empty coo on cuda]",
    "torch_compile_still_compiles_cpu_code",
    "mindspore_starts_with_the_first_operator_that_runs_on_it",
    "kept_blocks_never_enlarge_the_process",
    "forked_child_is_told",
)


@pytest.fixture(scope="module")
def native() -> Path:
    """The folder of `_native`, built by setup.py's own flags without a warning."""
    try:
        build.require(build.EMULATOR)
        return build.build("_native").parent
    except build.Unavailable as missing:
        pytest.skip(str(missing))


def _lines(outputs: Iterable[str]) -> list[dict[str, object]]:
    return [json.loads(line) for output in outputs for line in output.splitlines() if line.startswith("{")]


def _wrong(results: Iterable[dict[str, object]]) -> list[dict[str, object]]:
    return [r for r in results if not float(str(r["error"])) <= float(str(r["limit"]))]


def test_every_kernel_is_as_precise_as_its_storage_type(native: Path) -> None:
    python, environment = build.python(native)
    library = build.site() / ONEDNN
    command = [*python, "-m", "tests.aarch64.kernels", *([str(library)] if library.exists() else [])]
    run = subprocess.run(
        command, cwd=build.PROJECT, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    assert run.returncode == 0, run.stderr
    *results, last = _lines([run.stdout])
    assert last["not called"] == ([] if library.exists() else ["gemm", "gemm_load"])
    assert last["isa"] == "portable"
    assert {str(r["dtype"]) for r in results} == {"float32", "bfloat16", "float16"}
    assert _wrong(results) == []


def test_two_ranks_exchange_by_every_collective(native: Path, tmp_path: Path) -> None:
    python, environment = build.python(native)
    ranks = [
        subprocess.Popen(
            [*python, "-m", "tests.aarch64.collectives", str(rank), str(tmp_path)],
            cwd=build.PROJECT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=900) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], [errors for _, errors in outputs]
    results = _lines(output for output, _ in outputs)
    assert len(results) == 3 * 2 * (11 + 12)  # dtypes, sizes, what ranks 0 and 1 receive
    assert _wrong(results) == []


def test_the_package_computes_on_its_device(native: Path) -> None:
    """The device, copies, views and lowered operators, with the aarch64 torch and MindSpore."""
    for name in ("torch", "mindspore", "megatron", "pytest"):
        if not (build.site() / name).exists():
            pytest.skip(f"no aarch64 {name} in {build.site()}: see tests/aarch64/README.md")
    python, environment = build.python(build.package(native.parent))
    tests = [DEVICE, "tests/unit/test_kernels_norm.py", *(f"--deselect={DEVICE}::test_{n}" for n in LEFT_OUT)]
    command = [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "900", *tests]
    run = subprocess.run(
        command, cwd=build.PROJECT, env=environment, capture_output=True, text=True, timeout=3000, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
