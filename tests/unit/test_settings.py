"""The variables MINDSPEED_MS_*: one table, from which everything reads and which bridge/README.md shows."""

import ast
import re
from pathlib import Path

import mindspeed_ms.patch  # noqa: F401 - loads what _runtime needs
import pytest
from mindspeed_ms import _runtime
from mindspeed_ms.config import settings
from processes import cli, launch, one_line

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [p for folder in ("bridge", "patches", "examples") for p in (ROOT / folder).rglob("*.py")]
NAMES = {setting.name: setting for setting in settings.TABLE}


@pytest.mark.parametrize("setting", settings.TABLE, ids=lambda s: s.name)
def test_a_setting_takes_what_it_offers(setting):
    assert setting.read({}) == setting.read({setting.name: ""}) == setting.default
    for text in setting.allowed if setting.choices else ("something",):
        assert setting.origin({setting.name: text}) == "environment"
        read = setting.read({setting.name: text})
        assert str(read) == text or read is (text == "1")


@pytest.mark.parametrize("setting", [s for s in settings.TABLE if s.choices], ids=lambda s: s.name)
def test_a_wrong_value_is_one_sentence(setting):
    with pytest.raises(ValueError, match=f"^{setting.name}='wrong' is not possible; give it ") as told:
        setting.read({setting.name: "wrong"})
    assert all(choice in str(told.value) for choice in setting.allowed)
    assert told.value.__cause__ is None


def test_a_value_is_read_once(monkeypatch):
    setting = settings.Setting("MINDSPEED_MS_X", "a", str, ("text",), "")
    monkeypatch.setenv("MINDSPEED_MS_X", "b")
    assert setting.value == "b"
    monkeypatch.setenv("MINDSPEED_MS_X", "c")
    assert setting.value == "b"
    setting.hand_on("d")
    assert setting.value == "d"
    assert setting.read(dict(settings.os.environ)) == "d"


def test_a_misspelt_variable_is_told_at_the_start():
    with pytest.raises(ValueError, match="did you mean MINDSPEED_MS_ROUTE"):
        settings.check({"MINDSPEED_MS_ROUT": "strict"})
    done = launch("python", "-c", "import mindspeed_ms.patch", MINDSPEED_MS_TARGET="GPU")
    assert done.stderr.splitlines()[-1] == (
        "ValueError: MINDSPEED_MS_TARGET='GPU' is not possible; give it CPU or Ascend"
    )


def test_nothing_reads_past_the_table():
    """MINDSPEED_MS_* are read in settings.py alone, and in C++ as far as the table says so."""
    for path in SHIPPED:
        if path.name == "settings.py" and path.parent.name == "config":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.fullmatch(r"MINDSPEED_MS_\w+", node.value), f"{path}:{node.lineno}"
    for path in (ROOT / "csrc").rglob("*.*"):
        for name in re.findall(r'getenv\("(\w+)"\)', path.read_text()):
            assert "csrc" in NAMES[name].meaning, f"{path} reads {name}: say so in its meaning"


def test_names_in_the_sources_exist():
    """A docstring, an error message or a script speaks of no variable that has gone."""
    csrc = list((ROOT / "csrc").rglob("*.*"))
    macros = {name for path in csrc for name in re.findall(r"#define (\w+)", path.read_text())}
    for path in [*SHIPPED, *csrc, *ROOT.glob("*.md"), *(ROOT / "examples").glob("*.sh")]:
        for name in re.findall(r"MINDSPEED_MS_[A-Z]\w*", path.read_text()):
            assert name in NAMES or name in macros, f"{path} names {name}"


def test_routes_are_those_of_the_runtime():
    assert settings.ROUTE.allowed == tuple(_runtime.RouteMode.__members__)


def test_readme_shows_the_table():
    assert max(len(cell) for cell in settings.markdown().split("|")) <= 200
    assert settings.markdown() in (ROOT / "bridge" / "README.md").read_text(), (
        "paste `mindspeed-ms env --markdown`"
    )


def test_env_tells_value_and_origin():
    done = cli("env", MINDSPEED_MS_ROUTE="host", LOCAL_WORLD_SIZE="4")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1:3] for line in done.stdout.splitlines()}
    assert rows["MINDSPEED_MS_ROUTE"] == ["host", "environment"]
    assert rows["MINDSPEED_MS_TARGET"] == ["CPU", "default"]
    assert rows["LOCAL_WORLD_SIZE"] == ["4", "environment"]
    assert set(rows) >= set(NAMES) | set(settings.LAUNCH)


def test_env_tells_what_is_wrong():
    done = cli("env", MINDSPEED_MS_ISA="sse")
    assert done.returncode == 1
    assert "WRONG: give it auto, portable, avx2, avx512 or avx512_bf16" in done.stdout
    assert "MINDSPEED_MS_ISA='sse' is not possible" in done.stdout
    assert one_line(cli("coverage", MINDSPEED_MS_COVERAGE=""), 2)
