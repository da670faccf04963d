"""The MindSpore forms of all kernels on the simulated device; none takes a number or tensor from the host."""


def test_kernels(on_simulator) -> None:
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/cann/on_device/kernels.py")
    done = on_simulator(*command, timeout=600, extra={"MS_DEV_DISABLE_AUTO_H2D": "1"})
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
