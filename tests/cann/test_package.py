"""The package itself on the simulated device and on two ranks of simulated HCCL."""

import pytest

from tests.distributed.ranks import free_port

HERE = "tests/cann/on_device"


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_one_device(on_simulator, asynchronous: bool) -> None:
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", f"{HERE}/package.py")
    done = on_simulator(*words, asynchronous=asynchronous)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.distributed
def test_two_ranks(on_simulator) -> None:
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    words += ["--master-port", str(free_port()), f"{HERE}/package_ranks.py"]
    done = on_simulator(*words, extra={"CANNSIM_HCCL_TIMEOUT": "20"})
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("ok") == 2
