"""The torch device on the simulated CANN, in each of its modes."""

import pytest

PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
CHECKS = (*PYTEST, *(f"tests/cann/on_device/{name}.py" for name in ("device", "lending")))
EXTRA = {"LOCAL_RANK": "2"}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_device(on_simulator, asynchronous: bool) -> None:
    done = on_simulator(*CHECKS, asynchronous=asynchronous, devices=4, extra=EXTRA, timeout=400)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("file", ["factories.py", "results.py"])
def test_what_operators_give(on_simulator, file: str) -> None:
    done = on_simulator(*PYTEST, f"tests/cann/on_device/{file}")
    assert done.returncode == 0, done.stdout[-6000:]


SMALLEST = "import mindspeed_ms.patch, torch; torch.zeros(1, device='npu')"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"LD_LIBRARY_PATH": ""}, "CANN is not there"),
        ({"CANNSIM_DEVICES": "0"}, "no card is visible"),
        ({"ASCEND_HOME_PATH": ""}, "ASCEND_HOME_PATH is not set"),
    ],
)
def test_the_first_tensor_says_what_is_missing(on_simulator, extra, words) -> None:
    done = on_simulator("-c", SMALLEST, extra=extra)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert words in last
    assert last.startswith("RuntimeError: Ascend: ")


def test_another_version_of_cann_is_refused(on_simulator, tmp_path) -> None:
    (tmp_path / "compiler").mkdir()
    (tmp_path / "compiler/version.info").write_text("Version=7.0.RC1\n")
    done = on_simulator("-c", SMALLEST, extra={"ASCEND_HOME_PATH": str(tmp_path)})
    assert "CANN 7.0.RC1 does not fit MindSpore" in done.stderr.strip().splitlines()[-1]


NULL = """
import mindspeed_ms.patch, torch
x = torch.tensor([3, 1, 2], device="npu")
marks = torch.zeros(3, dtype=torch.bool, device="npu").scatter(0, x[1:], True)
y = torch.full((3,), 2.0, device="npu")
print((x + x).tolist(), marks.sum().item(), marks.nonzero().flatten().tolist(), 4.0 in (y * y).tolist())
"""


def test_null_mode_computes_whole_numbers_only(on_simulator) -> None:
    done = on_simulator("-c", NULL, null=True)
    assert done.stdout.split("\n")[-2] == "[6, 2, 4] 2 [1, 2] False", done.stderr[-2000:]
