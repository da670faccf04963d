"""The machinery under the kernels: instruction sets, thread pool, dispatch."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from mindspeed_ms import kernels
from mindspeed_ms.kernels import backend
from mindspeed_ms.routes import implementation, route


def norm(x: torch.Tensor) -> torch.Tensor:
    return kernels.rms_norm(x, torch.ones(x.shape[-1]))


def test_force_isa_is_seen_and_undone():
    for name in ("portable", "auto"):
        backend.force_isa(name)
        assert backend.isa() == (backend.best_isa() if name == "auto" else name)


def test_unknown_isa_is_refused():
    with pytest.raises(ValueError, match="unknown instruction set 'sse9'"):
        backend.force_isa("sse9")


def test_environment_forces_isa():
    code = "from mindspeed_ms.kernels import isa; print(isa())"
    env = {**os.environ, "MINDSPEED_MS_ISA": "portable"}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert out.stdout.strip() == "portable", out.stderr


def test_result_does_not_depend_on_threads():
    torch.manual_seed(0)
    x, dy = torch.randn(600, 1000), torch.randn(600, 1000)
    before = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            leaf, weight = x.clone().requires_grad_(), torch.ones(1000, requires_grad=True)
            y = kernels.rms_norm(leaf, weight)
            results.append((y.detach(), *torch.autograd.grad(y, (leaf, weight), dy)))
            assert backend.native().threads() == n
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_concurrent_callers_get_their_own_results():
    torch.manual_seed(1)
    inputs = [torch.randn(257, 1024) for _ in range(4)]
    expected = [norm(x) for x in inputs]
    wrong: list[int] = []

    def loop(k: int) -> None:
        for _ in range(200):
            if not torch.equal(norm(inputs[k]), expected[k]):
                wrong.append(k)

    threads = [threading.Thread(target=loop, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=60)
    assert not any(t.is_alive() for t in threads), "a kernel call hangs"
    assert wrong == []


def test_resizing_the_pool_between_calls():
    x = torch.randn(512, 1024)
    expected = norm(x)
    before = torch.get_num_threads()
    try:
        for n in [3, 1, 2, 4] * 10:
            torch.set_num_threads(n)
            assert torch.equal(norm(x), expected)
    finally:
        torch.set_num_threads(before)


def test_forked_child_can_compute():
    x = torch.randn(512, 1024)
    weight = torch.ones(1024)
    expected = kernels.rms_norm(x, weight).numpy().tobytes()  # the parent's pool has threads now
    pid = os.fork()
    if pid == 0:
        # Nothing but our kernel may compute here: torch's own OpenMP pool does not survive a fork.
        os._exit(0 if kernels.rms_norm(x, weight).numpy().tobytes() == expected else 1)
    deadline = time.monotonic() + 60
    done = status = 0
    while not done and time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.01)
    if not done:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert done, "the kernel hangs in a forked child"
    assert os.waitstatus_to_exitcode(status) == 0


def test_unsupported_dtype_goes_to_the_composite():
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert implementation(x) == "composite"
    assert torch.autograd.gradcheck(lambda t: kernels.rms_norm(t, torch.ones(8, dtype=torch.float64)), x)


def test_the_composite_is_preferred_where_the_route_says_so():
    with route("composite"):
        assert implementation(torch.ones(1)) == "composite"
    assert implementation(torch.ones(1)) == "csrc"


@pytest.mark.parametrize("device", ["cpu", "npu"])
def test_a_seed_is_what_the_device_would_draw(device):
    import mindspeed_ms.patch  # noqa: F401 - the device

    like = torch.zeros(1, device=device)
    own = torch.Generator(device=device)
    for generator in (None, own):
        drawn = []
        for draw in (
            backend.draw_seed,
            lambda x, g: int(x.new_empty((), dtype=torch.int64).random_(generator=g)),
        ):
            torch.manual_seed(3)
            own.manual_seed(4)
            drawn.append([draw(like, generator) for _ in range(2)])
        assert drawn[0] == drawn[1]
