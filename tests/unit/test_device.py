"""The surface of device npu: what scripts written for torch.cuda ask of their device."""

from __future__ import annotations

import copy
import io
import math
import os
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import mindspeed_ms.patch  # noqa: F401
import numpy as np
import pytest
import torch
from mindspeed_ms import _runtime
from torch.utils.checkpoint import checkpoint

MIB = 2**20
needs_addresses = pytest.mark.skipif(
    _runtime.opaque_memory(), reason="opaque memory has no address that the host may read"
)
of_the_cpu_target = pytest.mark.skipif(
    _runtime.on_ascend(),
    reason="holds of the CPU target: devices are the ranks of the host, memory is counted at once, and "
    "torch's CPU engine draws; tests/cann/on_device/device.py has Ascend's",
)


def on_npu(t: torch.Tensor) -> bool:
    return t.device == torch.device("npu", 0)


# --- where tensors are made ---------------------------------------------------------------------------------


NAMES = ["npu", "npu:0", "cuda", "cuda:0", torch.device("cuda"), torch.device("npu", 0)]


@pytest.mark.parametrize("device", NAMES, ids=repr)
def test_factories(device: str | torch.device) -> None:
    made = {
        "zeros": torch.zeros(2, 3, device=device),
        "ones": torch.ones(2, 3, device=device),
        "empty": torch.empty(2, 3, device=device),
        "full": torch.full((2, 3), 7.0, device=device),
        "arange": torch.arange(6, device=device),
        "linspace": torch.linspace(0, 1, 5, device=device),
        "eye": torch.eye(3, device=device),
        "tensor": torch.tensor([[1.0, 2.0]], device=device),
        "as_tensor": torch.as_tensor([1, 2], device=device),
        "rand": torch.rand(2, 3, device=device),
        "randn": torch.randn(2, 3, device=device),
        "randint": torch.randint(0, 9, (2, 3), device=device),
        "randperm": torch.randperm(5, device=device),
        "empty_strided": torch.empty_strided((2, 3), (1, 2), device=device),
        "tril_indices": torch.tril_indices(3, 3, device=device),
        "zeros_like": torch.zeros_like(torch.ones(2), device=device),
        "new_zeros": torch.ones(2).new_zeros(3, device=device),
    }
    assert [name for name, t in made.items() if not on_npu(t)] == []
    assert made["full"].sum().item() == 42.0
    assert made["arange"].tolist() == [0, 1, 2, 3, 4, 5]
    assert made["tensor"].tolist() == [[1.0, 2.0]]
    assert sorted(made["randperm"].tolist()) == [0, 1, 2, 3, 4]


def test_device_context_and_default_device() -> None:
    with torch.device("cuda"):
        assert on_npu(torch.zeros(2))
        assert on_npu(torch.nn.Linear(2, 2).weight)
    assert torch.zeros(2).device.type == "cpu"


def test_moving() -> None:
    host = torch.arange(6.0).view(2, 3)
    moved = [host.cuda(), host.cuda(0), host.npu(), *(host.to(name) for name in NAMES)]
    assert all(on_npu(t) for t in moved)
    t = moved[0]
    assert t.cuda() is t
    assert t.to("cuda") is t
    assert t.to(t.device) is t
    assert t.to("cuda", torch.float32) is t
    assert t.to("cuda", copy=True) is not t
    assert t.to("cuda", torch.bfloat16).dtype == torch.bfloat16
    assert t.to(torch.zeros(1, dtype=torch.float64)).device.type == "cpu"
    assert torch.equal(t.cpu(), host)
    assert t.cpu().data_ptr() != host.data_ptr()


def test_module_cuda_keeps_parameters_and_ties() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    before = list(model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    assert model.cuda() is model
    after = list(model.parameters())
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert model[0].weight is model[1].weight
    assert on_npu(model[0].weight)
    weight = model[0].weight.detach().cpu().clone()
    model(torch.ones(1, 2, device="cuda")).sum().backward()
    grad = model[0].weight.grad.cpu()
    optimizer.step()
    torch.testing.assert_close(model[0].weight.detach().cpu(), weight - grad)
    assert model.cpu()[0].weight.device.type == "cpu"


def test_devices_do_not_mix() -> None:
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.ones(3, device="npu") + torch.ones(3)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.ones(3, 3) @ torch.ones(3, 3, device="npu")
    scalar = torch.ones(3, device="npu") + torch.tensor(2.0)  # 0-d host tensors may join, as with CUDA
    assert scalar.tolist() == [3.0, 3.0, 3.0]


def sparse_embedding() -> None:
    table = torch.nn.Embedding(10, 4, sparse=True).to("npu")
    table(torch.tensor([1, 2], device="npu")).sum().backward()


def sparse_gather() -> None:
    x = torch.ones(3, 3, device="npu", requires_grad=True)
    torch.gather(x, 0, torch.zeros(1, 3, dtype=torch.long, device="npu"), sparse_grad=True).sum().backward()


MAKE_SPARSE: dict[str, Callable[[], object]] = {
    "coo to npu": lambda: torch.eye(3).to_sparse().to("npu"),
    "csr to npu": lambda: torch.eye(3).to_sparse_csr().to("npu"),
    "coo to cuda": lambda: torch.eye(3).to_sparse().cuda(),
    "npu to coo": lambda: torch.eye(3, device="npu").to_sparse(),
    "npu to csr": lambda: torch.eye(3, device="npu").to_sparse_csr(),
    "coo on cuda": lambda: torch.sparse_coo_tensor([[0, 1]], [1.0, 2.0], (3,), device="cuda"),
    "csr on cuda": lambda: torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 3), device="cuda"),
    "empty coo on cuda": lambda: torch.empty(3, 3, layout=torch.sparse_coo, device="cuda"),
    "empty csr on npu": lambda: torch.empty(3, 3, layout=torch.sparse_csr, device="npu"),
    "times npu": lambda: torch.sparse.mm(torch.eye(3).to_sparse(), torch.ones(3, 3, device="npu")),
    "embedding": sparse_embedding,
    "gather": sparse_gather,
}


@pytest.mark.parametrize("how", MAKE_SPARSE)
def test_sparse_tensors_are_refused_in_one_sentence(how: str) -> None:
    with pytest.raises(NotImplementedError, match=r"^aten::\w+.* (dense tensors only|a Sparse\w* tensor)"):
        MAKE_SPARSE[how]()


@needs_addresses
def test_out_of_memory_speaks_as_cuda_does() -> None:
    tensor = torch.ones(1 << 20, device="cuda")
    with pytest.raises(torch.cuda.OutOfMemoryError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    amount = r"([\d.]+ (?:bytes|KiB|MiB|GiB))"
    found = re.match(
        rf"CUDA out of memory\. Tried to allocate {amount}\. GPU 0 has a total capacity of {amount} of which "
        rf"{amount} is free\. Of the allocated memory {amount} is allocated",
        str(caught.value),
    )
    assert found, caught.value
    tried, total, free, allocated = found.groups()
    assert tried == f"{2**20:.2f} GiB"
    assert total == f"{torch.cuda.mem_get_info()[1] / 2**30:.2f} GiB"
    assert free.split()[1] in ("MiB", "GiB")
    assert float(allocated.split()[0]) * 2**20 >= tensor.nbytes


# --- types --------------------------------------------------------------------------------------------------


def test_types() -> None:
    t = torch.cuda.FloatTensor([1.0, 2.0])
    assert on_npu(t)
    assert t.tolist() == [1.0, 2.0]
    assert t.is_cuda
    assert not torch.ones(1).is_cuda
    assert t.type() == "torch.cuda.FloatTensor"
    assert t.half().type() == "torch.cuda.HalfTensor"
    assert t.bfloat16().type() == "torch.cuda.BFloat16Tensor"
    assert torch.ones(1).type() == "torch.FloatTensor"
    assert on_npu(torch.ones(2).type("torch.cuda.LongTensor"))
    assert torch.ones(2).type(torch.cuda.LongTensor).dtype == torch.int64
    assert isinstance(t, torch.cuda.FloatTensor)
    assert not isinstance(t, torch.cuda.HalfTensor)
    assert not isinstance(torch.ones(1), torch.cuda.FloatTensor)
    assert torch.cuda.ByteTensor(4).shape == (4,)
    assert torch.cuda.IntTensor().numel() == 0


def test_repr_and_format() -> None:
    t = torch.tensor([1.0, 2.5], device="npu")
    assert repr(t) == "tensor([1.0000, 2.5000], device='npu:0')"
    assert f"{t.sum():.1f}" == "3.5"
    assert repr(torch.zeros(0, device="npu")) == "tensor([], device='npu:0')"


# --- device functions ---------------------------------------------------------------------------------------


@of_the_cpu_target
def test_cuda_functions() -> None:
    assert torch.cuda.is_available()
    count = torch.cuda.device_count()
    assert count == int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.cuda.set_device(0)
    torch.cuda.set_device("cuda:0")
    assert torch.cuda.current_device() == 0
    assert isinstance(torch.cuda.get_device_name(), str)
    major, minor = torch.cuda.get_device_capability()
    assert (major, minor) >= (8, 0)
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert torch.cuda.get_device_properties(0).total_memory == physical
    torch.cuda.synchronize()
    torch.cuda.init()
    assert torch.cuda.is_initialized()
    assert torch.cuda.is_bf16_supported()
    with torch.cuda.device(0):
        assert on_npu(torch.ones(1, device="cuda"))
    with torch.cuda.device_of(torch.ones(1, device="cuda")):
        assert torch.cuda.current_device() == 0
    with pytest.raises(RuntimeError, match="out of range"):
        torch.cuda.set_device(count)


@of_the_cpu_target
def test_memory_statistics_are_true() -> None:
    torch.ones(1, device="cuda")
    before = torch.cuda.memory_allocated()
    first = torch.empty(3 * MIB, dtype=torch.uint8, device="cuda")
    assert torch.cuda.memory_allocated() - before == 3 * MIB
    second = torch.empty(MIB, device="cuda")
    assert torch.cuda.memory_allocated() - before == 7 * MIB
    view = first[MIB:]
    del first
    assert torch.cuda.memory_allocated() - before == 7 * MIB, "a view keeps the storage"
    del view
    assert torch.cuda.memory_allocated() - before == 4 * MIB
    second.untyped_storage().resize_(0)
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() >= before + 7 * MIB
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == before
    product = torch.ones(512, 512, device="cuda") @ torch.ones(512, 512, device="cuda")
    assert torch.cuda.memory_allocated() - before == product.nbytes, "a result counts, its arguments are gone"
    assert torch.cuda.max_memory_allocated() - before >= 3 * MIB
    stats = torch.cuda.memory_stats()
    assert stats["allocated_bytes.all.current"] == torch.cuda.memory_allocated()
    assert stats["allocated_bytes.all.peak"] == torch.cuda.max_memory_allocated()
    assert torch.cuda.memory_reserved() >= torch.cuda.memory_allocated()
    free, total = torch.cuda.mem_get_info()
    assert 0 < free < total
    torch.cuda.empty_cache()
    assert "MiB" in torch.cuda.memory_summary()


LAZY = """
import sys
import mindspeed_ms.patch, torch
from mindspeed_ms import routes
from mindspeed_ms.routes import coverage

a = torch.randn(300, 300, device="cuda", requires_grad=True)
torch.nn.functional.gelu(a @ a).sum().backward()
assert "mindspore" not in sys.modules, "nothing ran on it"
with routes.route("strict"):
    product = a.detach() @ a.detach()
assert "mindspore" in sys.modules
assert any(row["route"] == "mindspore" for row in coverage.snapshot())
torch.testing.assert_close(product, (a @ a).detach())
"""


@needs_addresses
def test_mindspore_starts_with_the_first_operator_that_runs_on_it() -> None:
    done = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@needs_addresses
def test_large_blocks_are_used_again() -> None:
    def kept() -> int:
        return torch.cuda.memory_reserved() - torch.cuda.memory_allocated()

    torch.cuda.empty_cache()
    before = kept()
    block = torch.ones(8 * MIB, dtype=torch.uint8, device="cuda")
    address = block.data_ptr()
    del block
    assert kept() == before + 8 * MIB
    block = torch.empty(2 * MIB, device="cuda")
    assert block.data_ptr() == address
    del block
    torch.cuda.empty_cache()
    assert kept() == before
    torch.empty(8 * MIB, device="cuda")
    assert kept() == before, "what nobody wrote to is no memory worth keeping"


KEPT = """
import mindspeed_ms.patch, torch

def block(mib): return torch.ones(mib * 2**20, dtype=torch.uint8, device="cuda")
def kept(): return (torch.cuda.memory_reserved() - torch.cuda.memory_allocated()) // 2**20

large = block(64)
del large
assert kept() == 64, kept()
other = block(40)  # 64 MiB would be too wasteful for it
assert kept() == 24, kept()  # all that was ever in use, less the 40 MiB
pieces = [block(4) for _ in range(4)]
assert kept() == 8, kept()
del pieces
assert kept() == 24, kept()
third = block(20)
assert kept() == 4, kept()
assert torch.cuda.max_memory_reserved() // 2**20 == 64, torch.cuda.max_memory_reserved()
"""


@needs_addresses
def test_kept_blocks_never_enlarge_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_streams_and_events() -> None:
    main = torch.cuda.current_stream()
    side = torch.cuda.Stream()
    assert side != main
    assert torch.cuda.default_stream() == main
    side.wait_stream(main)
    with torch.cuda.stream(side):
        assert torch.cuda.current_stream() == side
        x = torch.ones(4, device="cuda") * 2
    assert torch.cuda.current_stream() == main
    x.record_stream(main)
    main.wait_stream(side)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    threading.Event().wait(0.02)
    end.record()
    end.synchronize()
    assert end.query()
    assert 20 <= start.elapsed_time(end) < 10_000
    main.wait_event(end)
    assert side.query()
    side.synchronize()
    assert x.sum().item() == 8
    with pytest.raises(RuntimeError, match="recorded"):
        torch.cuda.Event(enable_timing=True).elapsed_time(end)


def test_nvtx_and_profiler_calls() -> None:
    torch.cuda.nvtx.range_push("step")
    torch.cuda.nvtx.range_push("inner")
    assert torch.cuda.nvtx.range_pop() == 1
    assert torch.cuda.nvtx.range_pop() == 0
    torch.cuda.nvtx.mark("here")
    assert torch.cuda.cudart().cudaProfilerStart() == 0


# --- random numbers -----------------------------------------------------------------------------------------


@of_the_cpu_target
def test_seed_gives_the_numbers_of_plain_torch() -> None:
    torch.manual_seed(5)
    expected = torch.randn(100)
    torch.manual_seed(5)
    assert torch.equal(torch.randn(100, device="cuda").cpu(), expected)
    torch.cuda.manual_seed(5)
    assert torch.equal(torch.randn(100, device="cuda").cpu(), expected)
    assert torch.cuda.initial_seed() == 5


DRAWS = {
    "randn": lambda: torch.randn(64, device="cuda"),
    "dropout": lambda: torch.nn.functional.dropout(torch.ones(64, device="cuda")),
    "native_dropout": lambda: torch.native_dropout(torch.ones(64, device="cuda"), 0.5, True)[0],
    "bernoulli": lambda: torch.bernoulli(torch.full((64,), 0.5, device="cuda")),
    "multinomial": lambda: torch.multinomial(torch.ones(64, device="cuda"), 32),
    "randint": lambda: torch.randint(0, 1000, (64,), device="cuda"),
    "normal_": lambda: torch.empty(64, device="cuda").normal_(),
    "randperm": lambda: torch.randperm(64, device="cuda"),
    "rand_like": lambda: torch.rand_like(torch.ones(64, device="cuda")),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_rng_state_save_and_restore(draw: Callable[[], torch.Tensor]) -> None:
    state = torch.cuda.get_rng_state()
    host = torch.get_rng_state()
    assert state.device.type == "cpu"
    assert state.dtype == torch.uint8
    first = draw()
    assert not torch.equal(first, draw())
    torch.cuda.set_rng_state(state)
    assert torch.equal(first, draw())
    assert torch.equal(host, torch.get_rng_state()), "the host's generator must not move"


def test_generators() -> None:
    g = torch.Generator(device="cuda").manual_seed(11)
    assert g.device == torch.device("npu", 0)
    assert isinstance(g, torch.Generator)
    a = torch.rand(8, device="cuda", generator=g)
    state = g.get_state()
    b = torch.rand(8, device="cuda", generator=g)
    g.set_state(state)
    assert torch.equal(b, torch.rand(8, device="cuda", generator=g))
    if not _runtime.on_ascend():
        assert torch.equal(a.cpu(), torch.rand(8, generator=torch.Generator().manual_seed(11)))
    default = torch.cuda.default_generators[0]
    default.manual_seed(3)
    assert torch.cuda.initial_seed() == 3
    assert len(torch.cuda.default_generators) == torch.cuda.device_count()
    assert torch.Generator().device.type == "cpu"
    with torch.random.fork_rng(devices=[0], device_type="cuda"):
        inside = torch.rand(4, device="cuda")
    assert torch.equal(inside, torch.rand(4, device="cuda"))


def test_checkpoint_repeats_dropout() -> None:
    def block(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(x * x, 0.5)

    grads = []
    for recompute in (False, True):
        torch.manual_seed(0)
        x = torch.arange(1.0, 65.0, device="cuda", requires_grad=True)
        y = checkpoint(block, x, use_reentrant=True) if recompute else block(x)
        y.sum().backward()
        grads.append(x.grad.cpu())
    assert torch.equal(*grads)
    kept = grads[0] != 0
    assert 0 < kept.sum() < 64
    assert torch.equal(grads[0][kept], 4 * torch.arange(1.0, 65.0)[kept])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(use_reentrant: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 4)).cuda()
    x = torch.randn(2, 4, device="cuda", requires_grad=True)
    expected = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    checkpoint(model, x, use_reentrant=use_reentrant).square().sum().backward()
    for grad, parameter in zip(expected, [x, *model.parameters()], strict=True):
        torch.testing.assert_close(parameter.grad, grad)


# --- files, copies, other libraries -------------------------------------------------------------------------


def test_save_and_load() -> None:
    state = {"w": torch.arange(6.0, device="cuda").view(2, 3), "h": torch.ones(2).bfloat16().cuda()}
    state["view"] = state["w"][1]
    file = io.BytesIO()
    torch.save(state, file)

    def load(**options: object) -> dict[str, torch.Tensor]:
        file.seek(0)
        return torch.load(file, **options)

    back = load()
    assert all(on_npu(t) for t in back.values())
    assert torch.equal(back["w"], state["w"])
    back["view"].zero_()
    assert back["w"].tolist() == [[0, 1, 2], [0, 0, 0]], "views stay views"
    for location in ("cpu", torch.device("cpu"), lambda storage, _: storage):
        assert torch.equal(load(map_location=location)["w"], torch.arange(6.0).view(2, 3))
    assert on_npu(load(map_location="cuda")["w"])
    assert on_npu(load(map_location="cuda:0")["w"])
    assert on_npu(load(map_location=torch.device("npu", 0))["h"])


def _tagged(location: str) -> io.BytesIO:
    """A file as torch writes it on a CUDA machine: the storages carry the tag `location`."""
    file = io.BytesIO()
    original = torch.serialization.location_tag
    torch.serialization.location_tag = lambda _storage: location
    try:
        torch.save({"w": torch.arange(4.0)}, file)
    finally:
        torch.serialization.location_tag = original
    file.seek(0)
    return file


def test_random_state_saved_on_cuda() -> None:
    def drawn(seed: int, offset: int) -> list[float]:
        state = torch.frombuffer(bytearray(struct.pack("<Qq", seed, offset)), dtype=torch.uint8)
        torch.cuda.set_rng_state(state)
        return torch.rand(3, device="cuda").tolist()

    before = torch.cuda.get_rng_state()
    try:
        torch.cuda.manual_seed(7)
        assert torch.rand(3, device="cuda").tolist() == drawn(7, 0)
        assert drawn(7, 8) == drawn(7, 8)
        assert len({tuple(drawn(*state)) for state in ((7, 0), (7, 8), (7, 16), (8, 8))}) == 4
    finally:
        torch.cuda.set_rng_state(before)


def test_load_files_saved_on_cuda() -> None:
    loaded = torch.load(_tagged("cuda:0"))["w"]
    assert on_npu(loaded)
    assert loaded.tolist() == [0, 1, 2, 3]
    assert torch.load(_tagged("cuda:0"), map_location="cpu")["w"].device.type == "cpu"
    assert on_npu(torch.load(_tagged("cuda:5"), map_location={"cuda:5": "cuda:0"})["w"])
    assert on_npu(torch.load(_tagged("cpu"), map_location="cuda")["w"])
    with pytest.raises(RuntimeError, match="device 99 but"):
        torch.load(_tagged("cuda:99"))


def test_copies() -> None:
    t = torch.arange(4.0, device="cuda")
    duplicate = copy.deepcopy({"t": t, "view": t[1:]})
    duplicate["t"].zero_()
    assert duplicate["view"].tolist() == [0, 0, 0]
    assert t.tolist() == [0, 1, 2, 3]
    model = torch.nn.Linear(2, 2).cuda()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.weight.zero_()
    assert model.weight.abs().sum().item() > 0
    assert on_npu(copy.copy(t))
    assert t.clone().tolist() == [0, 1, 2, 3]


def test_numpy_and_lists() -> None:
    t = torch.from_numpy(np.arange(3.0)).cuda()
    assert t.tolist() == [0, 1, 2]
    assert t.sum().item() == 3.0
    with pytest.raises(TypeError, match="cpu"):
        t.numpy()
    assert float(t[1]) == 1.0
    assert [int(x) for x in t] == [0, 1, 2]
    assert bool(t[1] == 1)


def test_dlpack_out() -> None:
    t = torch.arange(6.0, device="npu").view(2, 3)
    exported = np.from_dlpack(t.t())
    assert exported.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert torch.from_dlpack(t).device.type == "cpu"
    t.add_(1)
    assert exported[0, 0] == (0 if _runtime.opaque_memory() else 1)
    with pytest.raises(BufferError, match="gradient"):
        np.from_dlpack(torch.ones(2, device="npu", requires_grad=True))


@needs_addresses
def test_address_is_host_memory() -> None:
    t = torch.arange(4, dtype=torch.float32, device="npu")
    import ctypes

    assert list((ctypes.c_float * 4).from_address(t.data_ptr())) == [0, 1, 2, 3]


@needs_addresses
def test_borrow_and_adopt_share_memory() -> None:
    from mindspeed_ms.device import from_mindspore, to_mindspore

    t = torch.arange(6.0, device="npu").view(2, 3)
    lent = to_mindspore(t)
    assert lent.shape == (2, 3)
    t.add_(1)
    assert lent.asnumpy().tolist() == [[1, 2, 3], [4, 5, 6]]
    back = from_mindspore(lent)
    assert back.data_ptr() == t.data_ptr()


def test_pinned_memory() -> None:
    t = torch.arange(4.0)
    assert not t.is_pinned()
    pinned = t.pin_memory()
    assert pinned.is_pinned()
    assert pinned.device.type == "cpu"
    assert torch.equal(pinned.to("cuda", non_blocking=True).cpu(), t)
    assert torch.empty(4, pin_memory=True).is_pinned()
    assert pinned[1:].is_pinned()


# --- mixed precision ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cuda", "npu"])
def test_autocast(device: str) -> None:
    model = torch.nn.Linear(8, 8).cuda()
    x = torch.randn(2, 8, device="cuda")
    with torch.autocast(device, dtype=torch.bfloat16):
        assert torch.is_autocast_enabled(device)
        assert torch.get_autocast_dtype(device) == torch.bfloat16
        low = model(x)
        assert low.dtype == torch.bfloat16
        assert torch.nn.functional.softmax(low, -1).dtype == torch.float32
        with torch.autocast(device, enabled=False):
            assert model(x).dtype == torch.float32
    assert not torch.is_autocast_enabled(device)
    low.float().sum().backward()
    assert model.weight.grad.dtype == torch.float32
    reference = torch.nn.functional.linear(x.cpu().double(), model.weight.detach().cpu().double())
    reference += model.bias.detach().cpu().double()
    torch.testing.assert_close(low.detach().cpu().double(), reference, rtol=2**-7, atol=2**-6)


def test_grad_scaler() -> None:
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0], device="cuda"))
    optimizer = torch.optim.SGD([w], lr=0.1)
    scaler = torch.amp.GradScaler("cuda", init_scale=8.0, growth_interval=1)
    scaler.scale((w * w).sum()).backward()
    assert w.grad.tolist() == [16.0, 32.0]
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(w.detach().cpu(), torch.tensor([0.8, 1.6]))
    assert scaler.get_scale() == 16.0
    optimizer.zero_grad()
    scaler.scale((w * math.inf).sum()).backward()
    before = w.detach().clone()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(w, before), "a step with infinite gradients must be left out"
    assert scaler.get_scale() == 8.0


# --- threads and processes ----------------------------------------------------------------------------------


def _gradients(seed: int) -> list[torch.Tensor]:
    host = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 16, generator=host).cuda()
    w = torch.randn(16, 16, generator=host).cuda().requires_grad_()
    for _ in range(3):
        x = torch.tanh(x @ w) + x
    x.sum().backward()
    return [x.detach().cpu(), w.grad.cpu()]


def test_backward_on_autograd_threads() -> None:
    expected = _gradients(0)
    with torch.autograd.set_multithreading_enabled(True):
        for a, e in zip(_gradients(0), expected, strict=True):
            torch.testing.assert_close(a, e)


def test_python_threads() -> None:
    expected = [_gradients(seed) for seed in range(4)]
    results: list = [None] * 4

    def work(seed: int) -> None:
        for _ in range(5):
            results[seed] = _gradients(seed)

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    for got, wanted in zip(results, expected, strict=True):
        for a, e in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, e)


class _Squares(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([float(index) ** 2])


def test_data_loader_workers_after_device_use() -> None:
    total = torch.zeros(1, device="cuda")
    loader = torch.utils.data.DataLoader(_Squares(), batch_size=4, num_workers=2, pin_memory=True, timeout=60)
    for batch in loader:
        assert batch.is_pinned()
        total += batch.cuda().sum()
    assert total.item() == 285.0


FORKED = """
import os, sys, torch, mindspeed_ms.patch
x = torch.ones(4, device="cuda") + 1
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    try:
        torch.ones(4, device="cuda")
        answer = "no error"
    except RuntimeError as error:
        answer = str(error)
    try:
        x + 1
        answer += "|no error"
    except RuntimeError as error:
        answer += "|" + str(error)
    os.write(write, answer.encode())
    os._exit(0)
os.close(write)
os.waitpid(pid, 0)
print(os.read(read, 65536).decode())
assert (x + 1).tolist() == [3.0] * 4
"""


def test_forked_child_is_told(tmp_path: Path) -> None:
    script = tmp_path / "forked.py"
    script.write_text(FORKED)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for answer in done.stdout.split("|"):
        assert "forked subprocess" in answer
        assert "spawn" in answer


def test_torch_compile_still_compiles_cpu_code():
    """It asks torch.cuda, which answers for this device, what machine it keys its cache by."""
    x = torch.linspace(-3, 3, 1000)
    compiled = torch.compile(lambda x: torch.sin(x) * x + 1, fullgraph=True)
    torch.testing.assert_close(compiled(x), torch.sin(x) * x + 1)


def test_cuda_graph_is_a_type_that_cannot_be_made():
    def takes(graph: torch.cuda.CUDAGraph | None) -> None: ...  # as transformers annotates

    with pytest.raises(NotImplementedError, match="--cuda-graph-impl"):
        torch.cuda.CUDAGraph()
