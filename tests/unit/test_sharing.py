"""npu tensors through the queues of torch.multiprocessing, through pickle and files."""

import copy
import io
import pickle
import tempfile
from multiprocessing.reduction import ForkingPickler

import mindspeed_ms.patch  # noqa: F401
import pytest
import torch
import torch.multiprocessing


def double(inbox, outbox):
    for _ in range(2):
        tensor = inbox.get(timeout=60)
        result = (tensor.detach() * 2).tolist()
        outbox.put((str(tensor.device), type(tensor).__name__, tensor.requires_grad, result))


def test_tensors_and_parameters_arrive_on_the_device():
    context = torch.multiprocessing.get_context("spawn")
    inbox, outbox = context.Queue(), context.Queue()
    process = context.Process(target=double, args=(inbox, outbox), daemon=True)
    process.start()
    view = torch.arange(12.0, device="cuda").view(3, 4)[:, 1:3]
    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))
    inbox.put(view)
    inbox.put(weight)
    device, kind, requires_grad, result = outbox.get(timeout=60)
    assert (device, kind, requires_grad) == ("npu:0", "Tensor", False)
    assert result == (2 * view).tolist()
    device, kind, requires_grad, result = outbox.get(timeout=60)
    assert (device, kind, requires_grad) == ("npu:0", "Parameter", True)
    assert result == [2.0, 2.0, 2.0]
    process.join(30)
    assert process.exitcode == 0


def test_part_of_a_graph_is_refused():
    result = torch.ones(2, device="cuda", requires_grad=True) * 2
    with pytest.raises(RuntimeError, match="detach it first"):
        ForkingPickler.dumps(result)


def pickled(value):
    return pickle.loads(pickle.dumps(value))


def old_format(value):
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=False)
    stream.seek(0)
    return torch.load(stream)


def old_format_in_a_file(value):
    with tempfile.TemporaryFile() as file:
        torch.save(value, file, _use_new_zipfile_serialization=False)
        file.seek(0)
        return torch.load(file)


TRIPS = {f.__name__: f for f in (pickled, old_format, old_format_in_a_file, copy.deepcopy)}


@pytest.mark.parametrize("trip", TRIPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_round_trip(trip, dtype):
    whole = torch.arange(12, device="cuda").to(dtype).view(3, 4)
    for tensor in (whole, whole[1:, ::2], whole.t(), whole[:0], torch.tensor(3, dtype=dtype, device="cuda")):
        found = TRIPS[trip](tensor)
        assert (found.device, found.dtype, found.stride()) == (tensor.device, tensor.dtype, tensor.stride())
        assert found.cpu().equal(tensor.cpu())


@pytest.mark.parametrize("trip", TRIPS)
def test_what_shares_memory_on_the_cpu_shares_it_on_the_device(trip):
    shared = []
    for device in ("cpu", "cuda"):
        whole = torch.zeros(4, device=device)
        one, part = TRIPS[trip]([whole, whole[2:]])
        one.fill_(7)
        shared.append(part.tolist())
    assert shared[0] == shared[1]


def test_parameters_and_modules_are_pickled():
    layer = pickled(torch.nn.Linear(3, 2).cuda())
    assert {(type(p).__name__, p.device.type, p.requires_grad) for p in layer.parameters()} == {
        ("Parameter", "npu", True)
    }
