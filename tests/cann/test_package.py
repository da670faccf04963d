"""The package itself on the simulated device and on two ranks of simulated HCCL."""

import pytest

from tests.distributed.ranks import free_port

HERE = "tests/cann/on_device"


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_one_device(on_simulator, asynchronous: bool) -> None:
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", f"{HERE}/package.py")
    done = on_simulator(*words, asynchronous=asynchronous)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def on_ranks(on_simulator, ranks: int, script: str, **options: object) -> None:
    """Runs a script of on_device/ in so many processes; each must print "ok"."""
    words = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-addr", "127.0.0.1"]
    words += ["--master-port", str(free_port()), f"{HERE}/{script}"]
    done = on_simulator(*words, extra={"CANNSIM_HCCL_TIMEOUT": "60"}, **options)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("ok") == ranks


@pytest.mark.distributed
def test_two_ranks(on_simulator) -> None:
    on_ranks(on_simulator, 2, "package_ranks.py")


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("ranks", "cases"), [(2, 150), pytest.param(4, 300, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_drawn_collectives(on_simulator, ranks: int, cases: int) -> None:
    """Element types x layouts x forms x reductions of npu tensors, also those that the hosts make."""
    words = ("tests/conformance/collectives.py", "--device", "npu", "--cases", str(cases))
    words += ("--ranks", str(ranks))
    done = on_simulator(*words, extra={"CANNSIM_HCCL_TIMEOUT": "60"}, timeout=280 if ranks == 2 else 850)
    assert done.returncode == 0, done.stderr[-6000:]
    assert f"{ranks} ranks: {cases} cases equal to the reference" in done.stdout


@pytest.mark.distributed
@pytest.mark.parametrize(
    "ranks", [2, pytest.param(4, marks=pytest.mark.slow)], ids=lambda ranks: f"{ranks}_steps"
)
def test_ring_attention(on_simulator, ranks: int) -> None:
    on_ranks(on_simulator, ranks, "ring_ranks.py")
