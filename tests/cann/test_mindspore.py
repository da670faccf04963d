"""MindSpore on the simulated device, in each of its modes."""

import pytest

HERE = "tests/cann/on_device"
BASICS, VALUES, ABI = f"{HERE}/mindspore_basics.py", f"{HERE}/values.py", f"{HERE}/abi.py"


@pytest.mark.parametrize(
    ("options", "checks"),
    [
        pytest.param({}, (BASICS, VALUES, ABI), id="sync"),
        pytest.param({"asynchronous": True}, (BASICS, VALUES), id="async"),
        pytest.param({"cache": True}, (BASICS, VALUES), id="cache"),
    ],
)
def test_checks_on_the_device(on_simulator, options: dict[str, bool], checks: tuple[str, ...]) -> None:
    done = on_simulator("-m", "pytest", "-q", "-p", "no:cacheprovider", *checks, **options)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_a_stray_host_pointer_is_named(on_simulator) -> None:
    script = (
        "import ctypes; lib = ctypes.CDLL('libascendcl.so'); p = ctypes.c_void_p(); lib.aclInit(None)\n"
        "assert lib.aclrtMalloc(ctypes.byref(p), ctypes.c_size_t(4096), 0) == 0\n"
        "ctypes.string_at(p.value + 40, 1)"
    )
    done = on_simulator("-c", script)
    assert done.returncode == -11
    assert "the host read or wrote device memory" in done.stderr
    assert "40 bytes into the allocation of 2097152 bytes" in done.stderr


def test_memory_has_a_limit(on_simulator) -> None:
    script = (
        "import mindspore as ms; from mindspore import mint; ms.set_device('Ascend', 0)\n"
        "x = mint.zeros((128, 1024, 1024)); x.asnumpy()"
    )
    done = on_simulator("-c", script, memory=0.25)
    assert done.returncode != 0
    assert "Allocate memory failed" in done.stderr


def test_device_count_and_soc_are_settings(on_simulator) -> None:
    script = (
        "import ctypes; lib = ctypes.CDLL('libascendcl.so'); n = ctypes.c_uint32()\n"
        "lib.aclrtGetDeviceCount(ctypes.byref(n)); lib.aclrtGetSocName.restype = ctypes.c_char_p\n"
        "print(n.value, lib.aclrtGetSocName().decode(), lib.aclrtSetDevice(3))"
    )
    done = on_simulator("-c", script, devices=3, soc="Ascend910_9391")
    assert done.stdout.split() == ["3", "Ascend910_9391", "107001"]


def test_null_mode_launches_and_computes_nothing(on_simulator) -> None:
    script = (
        "import mindspore as ms; from mindspore import mint; ms.set_device('Ascend', 0)\n"
        "from tests.cann import counters\n"
        "print(mint.ones((2,)).asnumpy().tolist(), counters.read()['launches'])"
    )
    done = on_simulator("-c", script, null=True)
    assert "[0.0, 0.0] {'aclnnInplaceOne': 1}" in done.stdout, done.stderr[-2000:]
