"""Import cost, and what a wrong environment is told. Environments are real folders of package metadata."""

import os
import subprocess
import sys
from pathlib import Path

import packaging
import pytest
from mindspeed_ms import versions


def run(code: str, *first_on_path: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, first_on_path))}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env)


def metadata(folder: Path, name: str, version: str) -> Path:
    """A folder that shadows the installed package ``name`` with metadata of another version."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


CHECK = "from mindspeed_ms import versions; versions.check()"


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
    assert {c.name for c in checks} == {"python", *versions.CHECKED}


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


def test_checking_imports_nothing_heavy():
    done = run(CHECK + "; import sys; print({'torch', 'mindspore', 'megatron.core'} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stderr


def test_source_folder_alone_is_told_to_install(tmp_path):
    """The package is importable, its metadata is not there."""
    # The folder with our metadata is taken off the path; what versions.py imports may live there, too.
    (tmp_path / "packaging").symlink_to(Path(packaging.__file__).parent)
    code = f"""
import sys, types
from pathlib import Path
sys.path[:] = [p for p in sys.path if not list(Path(p).glob("mindspeed_ms-*-info"))]
sys.path.append({str(tmp_path)!r})
package = types.ModuleType("mindspeed_ms")
package.__path__ = [{str(Path(versions.__file__).parent)!r}]
sys.modules["mindspeed_ms"] = package
{CHECK}
"""
    assert "mindspeed_ms is not installed: run `pip install .`" in run(code).stderr
