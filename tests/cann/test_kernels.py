"""The MindSpore forms of all kernels on the simulated device."""


def test_kernels(on_simulator) -> None:
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/cann/on_device/kernels.py")
    done = on_simulator(*command, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
