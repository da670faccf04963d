"""npu tensors through the queues of torch.multiprocessing."""

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
