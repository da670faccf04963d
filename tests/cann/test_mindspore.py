"""MindSpore on the simulated device, in each of its modes."""

import pytest

HERE = "tests/cann/on_device"
BASICS, VALUES, FUSED, ABI = (f"{HERE}/{name}.py" for name in ("mindspore_basics", "values", "fused", "abi"))


@pytest.mark.parametrize(
    ("options", "checks"),
    [
        pytest.param({}, (BASICS, VALUES, FUSED, ABI), id="sync"),
        pytest.param({"asynchronous": True}, (BASICS, VALUES, FUSED), id="async"),
        pytest.param({"cache": True}, (BASICS, VALUES, FUSED), id="cache"),
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


@pytest.mark.parametrize(
    ("fault", "checks", "which"),
    [
        ("mask_sign", FUSED, "flash_attention and SBH"),
        ("stale_view", BASICS, "as_strided"),
        ("dropped_bias_gradient", BASICS, "two_layer"),
        ("fp16_overflow", VALUES, "large and float16"),
    ],
)
def test_a_deliberate_mistake_fails_the_check_that_looks_for_it(on_simulator, fault, checks, which) -> None:
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", checks, "-k", which)
    done = on_simulator(*words, fault=fault)
    assert done.returncode == 1, done.stdout[-2000:]
    assert "1 failed" in done.stdout
    assert "AssertionError" in done.stdout
