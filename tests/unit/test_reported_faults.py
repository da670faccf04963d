"""Faults that users met, one small input each: what it gives on CUDA it gives on the device."""

import io
import pickle
import warnings

import mindspeed_ms.patch  # noqa: F401
import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")


def test_storages_on_cuda():
    assert torch.UntypedStorage(16, device="cuda").device == torch.device("npu", 0)
    assert torch.UntypedStorage(16, device=torch.device("cuda", 0)).nbytes() == 16
    assert torch.UntypedStorage(4).device.type == "cpu"
    typed = torch.FloatStorage([1.0, 2.0]).cuda()
    assert typed.device.type == "npu"
    assert typed.tolist() == [1.0, 2.0]
    assert torch.tensor([3.0], device="cuda").untyped_storage().cuda().device.type == "npu"


def test_load_with_a_function_that_moves_storages_to_cuda():
    torch.save({"w": torch.arange(4.0)}, file := io.BytesIO())
    file.seek(0)
    loaded = torch.load(file, map_location=lambda storage, _location: storage.cuda(0))["w"]
    assert loaded.device.type == "npu"
    assert loaded.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.filterwarnings("ignore:.*custom_fwd.*deprecated")
@pytest.mark.filterwarnings("ignore:.*custom_bwd.*deprecated")
def test_custom_fwd_casts_tensors_of_the_device(old):
    amp = torch.cuda.amp if old else torch.amp
    device = {} if old else {"device_type": "cuda"}
    seen = []

    class Twice(torch.autograd.Function):
        @staticmethod
        @amp.custom_fwd(cast_inputs=torch.float32, **device)
        def forward(ctx, x):
            seen.append((x.dtype, torch.is_autocast_enabled("cuda")))
            return x * 2

        @staticmethod
        @(amp.custom_bwd if old else amp.custom_bwd(**device))
        def backward(ctx, grad):
            return grad * 2

    x = torch.ones(2, device="cuda", dtype=torch.float16, requires_grad=True)
    with torch.autocast("cuda", dtype=torch.float16):
        out = Twice.apply(x)
    assert seen == [(torch.float32, False)]
    assert out.dtype is torch.float32
    out.sum().backward()
    assert x.grad.tolist() == [2, 2]
    Twice.apply(x)
    assert seen[1] == (torch.float16, False), "outside autocast nothing is cast"


def test_autocast_to_float32():
    a = torch.ones(2, 2, dtype=torch.bfloat16, device="cuda")
    with torch.autocast("cuda", dtype=torch.float32):
        assert (a @ a).dtype is torch.float32


READ = (
    *("num_alloc_retries", "num_ooms", "num_device_alloc", "allocated_bytes.all.current"),
    *("reserved_bytes.all.peak", "active_bytes.small_pool.freed", "inactive_split_bytes.all.current"),
    *("inactive_split.large_pool.peak", "segment.all.current", "requested_bytes.all.allocated"),
)


def test_memory_statistics_have_the_keys_of_cuda():
    kept = torch.ones(1000, device="cuda")
    stats = torch.cuda.memory_stats()
    assert [key for key in READ if key not in stats] == []
    assert list(stats) == sorted(stats)
    assert dict(stats) == {key: stats[key] for key in stats}
    assert stats["allocated_bytes.all.current"] >= kept.nbytes
    with pytest.raises(KeyError):
        stats["no.such.key"]
    nested = torch.cuda.memory.memory_stats_as_nested_dict()
    assert nested["allocated_bytes"]["all"]["current"] >= kept.nbytes


def test_memory_history_says_what_it_cannot(tmp_path):
    with pytest.warns(UserWarning, match="no history of allocations"):
        torch.cuda.memory._record_memory_history()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.cuda.memory._record_memory_history(enabled=None)
    kept = torch.ones(1000, device="cuda")
    torch.cuda.memory._dump_snapshot(str(tmp_path / "snapshot.pickle"))
    snapshot = pickle.loads((tmp_path / "snapshot.pickle").read_bytes())
    (segment,) = (s for s in snapshot["segments"] if s["device"] == 0)
    assert segment["total_size"] >= segment["allocated_size"] >= kept.nbytes
    assert len(snapshot["device_traces"]) == torch.cuda.device_count()


def test_data_parallel_over_one_device():
    torch.manual_seed(0)
    plain = torch.nn.Linear(3, 2).cuda()
    model = torch.nn.DataParallel(plain)
    x = torch.randn(4, 3)
    for batch in (x, x.cuda()):
        plain.weight.grad = None
        out = model(batch)
        torch.testing.assert_close(out, plain(x.cuda()))
        out.sum().backward()
        torch.testing.assert_close(plain.weight.grad, x.sum(0).expand(2, 3).cuda())


def test_scatter_over_several_devices_is_refused_in_one_sentence():
    with pytest.raises(NotImplementedError, match="DistributedDataParallel"):
        torch.nn.parallel.comm.scatter(torch.ones(2, device="cuda"), [0, 1])


def test_a_device_of_cuda_is_the_device_of_its_tensors():
    x = torch.ones(2, device="cuda")
    assert x.device == torch.device("cuda", 0)
    assert (x.device != torch.device("cuda", 0)) is False
    assert x.device not in (torch.device("cuda", 1), torch.device("cuda"), torch.device("cpu"))
    assert {torch.device("cuda", 0): 1}[x.device] == 1
    assert torch.device("cpu") == torch.device("cpu") != torch.device("cpu", 0)
    assert x.device != "npu:0", "as before: a device is no string"
    with pytest.raises(TypeError, match="comparison not implemented"):
        x.device < torch.device("cuda", 0)  # noqa: B015


@pytest.mark.filterwarnings("ignore:torch.compile. inductor generates no code")
def test_compiled_training_equals_eager():
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(64, 2))
    images, losses = torch.randn(5, 3, 6, 6), []
    start = [{name: value.clone() for name, value in layer.state_dict().items()} for layer in layers]
    for device, wrap in (("cpu", lambda f: f), ("cuda", torch.compile)):
        model = torch.nn.Sequential(*layers)
        for layer, values in zip(layers, start, strict=True):
            layer.load_state_dict(values)
        run, optimizer = wrap(model.to(device)), torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            loss = run(images.to(device)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_a_compiled_function_says_once_that_it_runs_operator_by_operator():
    from mindspeed_ms.patches.torch import compiled

    compiled._say.cache_clear()
    double = torch.compile(lambda x: torch.cat((x, torch.ones(2, device="cuda"))) * 2)
    with pytest.warns(UserWarning, match="inductor generates no code for device npu"):
        assert double(torch.zeros(1, device="cuda")).tolist() == [0, 2, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert double(torch.zeros(3, device="cuda")).tolist() == [0, 0, 0, 2, 2]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("causal", [False, True])
def test_flex_attention_against_float64(causal):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch.manual_seed(0)
    given = [torch.randn(1, 2, 32, 8, dtype=torch.float64) for _ in range(3)]
    q, k, v = exact = [t.clone().requires_grad_() for t in given]
    scores = q @ k.mT / 8**0.5
    if causal:
        scores = scores.masked_fill(~torch.ones(32, 32).tril().bool(), -torch.inf)
    wanted = scores.softmax(-1) @ v
    wanted.square().sum().backward()
    ours = [t.float().cuda().requires_grad_() for t in given]
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, 32, 32, device="cuda") if causal else None
    found = flex_attention(*ours, block_mask=mask)
    found.square().sum().backward()
    torch.testing.assert_close(found.detach().cpu().double(), wanted.detach(), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.grad.cpu().double(), theirs.grad, rtol=1e-5, atol=1e-5)
