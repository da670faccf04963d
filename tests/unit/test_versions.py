"""Import cost, and what a wrong environment is told. Environments are real folders of package metadata."""

import os
import subprocess
import sys
from importlib.metadata import metadata as metadata_of
from importlib.metadata import requires
from pathlib import Path

import pytest
from mindspeed_ms.config import compat, versions
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]


def run(code: str, *first_on_path: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, first_on_path))}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env)


def metadata(folder: Path, name: str, version: str) -> Path:
    """A folder that shadows the installed package ``name`` with metadata of another version."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


CHECK = "from mindspeed_ms.config import versions; versions.check()"


def test_import_of_the_package_costs_next_to_nothing():
    code = (
        "import sys, time; before = time.perf_counter(); import mindspeed_ms; "
        "print(time.perf_counter() - before, {'torch', 'mindspore', 'megatron', 'numpy'} & set(sys.modules))"
    )
    best, modules = min((float(s), m) for s, m in (run(code).stdout.split(" ", 1) for _ in range(3)))
    assert best < 0.050
    assert modules.strip() == "set()"


def test_this_environment_fits():
    checks = list(versions.examine())
    assert [c.problem for c in checks] == [""] * 5
    assert {c.name for c in checks} == {"python", *compat.requirements()}


@pytest.mark.parametrize(
    ("name", "version"), [("numpy", "2.1.0"), ("torch", "2.12.1"), ("mindspore", "2.9.0")]
)
def test_wrong_version_is_one_sentence(tmp_path, name, version):
    done = run(CHECK, metadata(tmp_path, name, version))
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: mindspeed_ms needs {name}")
    assert f"but {name} {version} is installed: pip install '{name}" in last


def test_a_prerelease_counts_as_its_release(tmp_path):
    done = run(CHECK, metadata(tmp_path, "torch", "2.13.0a1"))
    assert done.returncode == 0, done.stderr


def test_a_checkout_of_megatron_counts_and_its_version_is_checked(tmp_path):
    core = tmp_path / "megatron/core"
    core.mkdir(parents=True)
    (core / "__init__.py").touch()
    (core / "package_info.py").write_text("MAJOR = 0\nMINOR = 11\nPATCH = 2\nPRE_RELEASE = ''\n")
    done = run(CHECK, tmp_path)
    assert "but megatron-core 0.11.2 is installed" in done.stderr.strip().splitlines()[-1]


def test_a_newer_megatron_runs_with_a_warning_that_names_what_changed(tmp_path):
    core = tmp_path / "megatron/core"
    core.mkdir(parents=True)
    (core / "__init__.py").touch()
    (core / "package_info.py").write_text("MAJOR = 0\nMINOR = 99\nPATCH = 0\nPRE_RELEASE = ''\n")
    done = run("import mindspeed_ms.patch; print('runs')", tmp_path)
    assert done.stdout.strip() == "runs", done.stderr
    newest = compat.PACKAGES["megatron"].verified[-1]
    assert f"PatchWarning: Megatron-Core 0.99.0 is newer than {newest}" in done.stderr
    seam = "megatron.core.tensor_parallel.layers:RowParallelLinear.forward"
    assert f"{seam}: there is no module" in done.stderr


def test_checking_imports_nothing_heavy():
    done = run(CHECK + "; import sys; print({'torch', 'mindspore', 'megatron.core'} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stderr


def test_pip_is_asked_for_what_is_checked():
    """The metadata is made by setup.py, which reads the same table."""
    asked = {r.name: r.specifier for r in map(Requirement, requires("mindspeed-ms")) if not r.marker}
    accepted = {name: SpecifierSet(versions) for name, versions in compat.requirements().items()}
    assert {name: asked.get(name) for name in accepted} == accepted
    assert SpecifierSet(metadata_of("mindspeed-ms")["Requires-Python"]) == SpecifierSet(compat.PYTHON)
    build = (ROOT / "pyproject.toml").read_text()
    assert f'"torch{compat.PACKAGES["torch"].supported}"' in build, "the extensions are linked to that torch"
