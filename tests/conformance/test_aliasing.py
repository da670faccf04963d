"""Memory that tensors share: the same program on npu as on CPU, with the same values, versions and errors.

Megatron lives on it: parameters are views of one flat buffer, gradients accumulate into views of another, and
storages are emptied and refilled to save memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import mindspeed_ms.patch  # noqa: F401
import pytest
import torch
from mindspeed_ms import _runtime

DEVICE = "npu"


def ramp(device: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """0.5, 1.5, 2.5, ... in `shape`."""
    numel = torch.Size(shape).numel()
    return (torch.arange(numel, dtype=torch.float64) + 0.5).view(shape).to(dtype).to(device)


def same(program: Callable[[str], tuple[Any, ...]]) -> None:
    """Runs `program` on both devices and compares everything it returns."""
    expected, actual = program("cpu"), program(DEVICE)
    assert expected, "a program must return what is to be compared"
    assert len(actual) == len(expected)
    for number, (a, e) in enumerate(zip(actual, expected, strict=True)):
        if isinstance(e, torch.Tensor):
            assert a.device.type == DEVICE, f"result {number} is on {a.device}"
            assert a.stride() == e.stride(), f"result {number} has strides {a.stride()}, on CPU {e.stride()}"
            torch.testing.assert_close(a.detach().cpu(), e.detach())
        else:
            assert a == e, f"result {number} is {a!r}, on CPU {e!r}"


def message(call: Callable[[], Any]) -> str:
    """The error of a call that must fail, without the name of the device in it."""
    with pytest.raises(RuntimeError) as caught:
        call()
    text = str(caught.value).split("\n")[0]
    for name in ("torch.npu.FloatTensor", "torch.cuda.FloatTensor", "npuFloatType", "CPUFloatType"):
        text = text.replace(name, "torch.FloatTensor")
    return text


# --- every kind of view, written in every way -------------------------------------------------------------

VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "view": lambda x: x.view(3, 8),
    "reshape": lambda x: x.reshape(2, 12),
    "slice": lambda x: x[1:3],
    "strided_slice": lambda x: x[::2, 1::3],
    "select": lambda x: x.select(1, 2),
    "narrow": lambda x: x.narrow(1, 2, 3),
    "transpose": lambda x: x.t(),
    "permute": lambda x: x.view(2, 2, 6).permute(2, 0, 1),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "squeeze": lambda x: x.view(4, 1, 6).squeeze(1),
    "diagonal": lambda x: x.diagonal(1),
    "split": lambda x: x.split(2, 1)[1],
    "chunk": lambda x: x.chunk(3, 1)[2],
    "unbind": lambda x: x.unbind(0)[3],
    "flatten": lambda x: x[1:].flatten(),
    "as_strided": lambda x: x.as_strided((3, 2), (6, 2), 3),
    "unfold": lambda x: x.unfold(1, 2, 2),
    "view_of_view": lambda x: x.t()[2:5].t()[::2],
    "movedim": lambda x: x.view(2, 2, 6).movedim(0, 2),
    "detach": lambda x: x.detach()[2:],
}

WRITES: dict[str, Callable[[torch.Tensor], Any]] = {
    "add_": lambda v: v.add_(1.25),
    "mul_": lambda v: v.mul_(v),
    "copy_": lambda v: v.copy_(torch.full(v.shape, 7.0).to(v.device)),
    "copy_from_cpu": lambda v: v.copy_(torch.full(v.shape, 8.0)),
    "zero_": lambda v: v.zero_(),
    "setitem": lambda v: v.__setitem__(0, -1.0),
    "masked_fill_": lambda v: v.masked_fill_(v > 9, 3.0),
    "index_put_": lambda v: v.index_put_((torch.tensor([0], device=v.device),), v.new_tensor(5.0)),
    "out": lambda v: torch.add(v, 2.0, out=v),
    "addcmul_": lambda v: v.addcmul_(v, v, value=0.5),
}


@pytest.mark.parametrize(("view", "write"), list(itertools.product(VIEWS, WRITES)))
def test_write_through_view(view: str, write: str) -> None:
    def program(device: str) -> tuple:
        base = ramp(device, 4, 6)
        seen = VIEWS[view](base)
        other = VIEWS[view](base)
        WRITES[write](seen)
        return base, seen, other, base._version, other._version, seen.is_set_to(other)

    same(program)


@pytest.mark.parametrize("view", VIEWS)
def test_gradient_through_written_view(view: str) -> None:
    def program(device: str) -> tuple:
        leaf = ramp(device, 4, 6).requires_grad_()
        base = leaf * 1.0
        seen = VIEWS[view](base) if view != "detach" else base[2:]
        if view in ("split", "chunk", "unbind"):  # autograd forbids writing one of several views
            return (message(lambda: seen.mul_(3.0)),)
        seen.mul_(3.0)
        (base * base).sum().backward()
        return leaf.grad, base, seen._version

    same(program)


# --- data, set_, resize_ ------------------------------------------------------------------------------------


def data_swap(device: str) -> tuple:
    p = torch.nn.Parameter(ramp(device, 2, 3))
    old = p.data
    version = p._version
    p.data = ramp(device, 6) * 2
    return p, old, p._version - version, tuple(p.shape), p.requires_grad, p.is_leaf


def data_swap_keeps_grad_accumulator(device: str) -> tuple:
    p = torch.nn.Parameter(ramp(device, 4))
    (p * 2).sum().backward()
    p.data = p.data.clone() + 1
    (p * p).sum().backward()
    return (p.grad,)


def data_shares_memory(device: str) -> tuple:
    p = torch.nn.Parameter(ramp(device, 4))
    p.data.add_(1)
    p.data[1:3].zero_()
    return p, p._version


def data_swap_between_dtypes(device: str) -> tuple:
    p = torch.nn.Parameter(ramp(device, 4))
    p.data = p.data.to(torch.bfloat16)
    return p.data.float(), p.dtype


def data_swap_under_optimizer(device: str) -> tuple:
    p = torch.nn.Parameter(ramp(device, 4))
    optimizer = torch.optim.SGD([p], lr=0.5, momentum=0.9)
    buffer = torch.zeros(10).to(device)
    buffer[3:7].copy_(p.data)
    p.data = buffer[3:7]
    for _ in range(2):
        p.grad = torch.ones_like(p)
        optimizer.step()
    return buffer, p


def set_to_other_tensor(device: str) -> tuple:
    a, b = ramp(device, 3), ramp(device, 2, 4)
    a.set_(b)
    a.add_(1)
    return a, b, a.is_set_to(b)


def set_to_storage(device: str) -> tuple:
    base = ramp(device, 12)
    x = torch.empty(0, device=device)
    x.set_(base.untyped_storage(), 2, (2, 3), (4, 1))
    x.mul_(10)
    return base, x, x.storage_offset()


def set_to_whole_storage(device: str) -> tuple:
    base = ramp(device, 6)
    x = torch.empty(0, device=device).set_(base.untyped_storage())
    x[0] = 100
    return base, x


def set_empty(device: str) -> tuple:
    x = ramp(device, 6)
    alias = x.view(2, 3)
    x.set_()
    return x, alias, x.untyped_storage().nbytes()


def set_grows_storage(device: str) -> tuple:
    x = ramp(device, 4)
    x.set_(x.untyped_storage(), 0, (8,), (1,))
    x[4:] = 0
    return x, x.untyped_storage().nbytes()


def resize_smaller_keeps_bytes(device: str) -> tuple:
    x = ramp(device, 4, 3)
    x.resize_(2, 2)
    return x, x.untyped_storage().nbytes()


def resize_larger_keeps_prefix(device: str) -> tuple:
    x = ramp(device, 4)
    x.resize_(3, 3)
    return x.flatten()[:4], x.untyped_storage().nbytes(), tuple(x.shape)


def resize_to_zero_and_back(device: str) -> tuple:
    x = ramp(device, 5)
    x.resize_(0)
    emptied = tuple(x.shape)
    x.resize_(5)
    return emptied, x


def resize_channels_last(device: str) -> tuple:
    x = torch.zeros(1, device=device).resize_(2, 3, 4, 5, memory_format=torch.channels_last)
    x.zero_()
    return x, x.is_contiguous(memory_format=torch.channels_last)


def resize_channels_last_same_size(device: str) -> tuple:
    x = ramp(device, 2, 3, 4, 5).resize_(2, 3, 4, 5, memory_format=torch.channels_last)
    return (x,)


def resize_as(device: str) -> tuple:
    x = ramp(device, 12).resize_as_(torch.empty(3, 2, device=device))
    return (x,)


def resize_view_of_larger_storage(device: str) -> tuple:
    base = ramp(device, 10)
    v = base[2:5]
    v.resize_(6)
    v.add_(100)
    return base, v


def resize_leaf_that_requires_grad(device: str) -> tuple:
    x = ramp(device, 4).requires_grad_()
    return (message(lambda: x.resize_(8)),)


def storage_resize_zero_and_back(device: str) -> tuple:
    x = ramp(device, 2, 4)
    kept = x.cpu().clone()
    x.untyped_storage().resize_(0)
    emptied = x.untyped_storage().nbytes()
    x.untyped_storage().resize_(32)
    x.copy_(kept)
    return emptied, x, tuple(x.shape), x.untyped_storage().nbytes()


def storage_resize_seen_by_views(device: str) -> tuple:
    base = ramp(device, 8)
    view = base.view(2, 4)[1]
    base.untyped_storage().resize_(0)
    base.untyped_storage().resize_(32)
    base.copy_(torch.arange(8.0))
    return view, base


def storage_resize_grows_keeping_prefix(device: str) -> tuple:
    x = ramp(device, 4)
    x.untyped_storage().resize_(64)
    return x, x.untyped_storage().nbytes()


def storage_shrink_keeps_prefix(device: str) -> tuple:
    x = ramp(device, 8)
    x.untyped_storage().resize_(16)
    return x[:4], x.untyped_storage().nbytes()


def storage_copy(device: str) -> tuple:
    a, b = ramp(device, 6), torch.zeros(6, device=device)
    b.untyped_storage().copy_(a.untyped_storage())
    return a, b


def storage_clone(device: str) -> tuple:
    a = ramp(device, 6)
    b = torch.empty(0, device=device).set_(a.untyped_storage().clone())
    a.zero_()
    return a, b


# --- flat buffers -------------------------------------------------------------------------------------------


def _flat_parameters(device: str) -> tuple[torch.Tensor, list[torch.nn.Parameter]]:
    """Two parameters whose data are views of one buffer, as Megatron's DDP and optimizer lay them out."""
    parameters = [torch.nn.Parameter(ramp(device, 3, 2)), torch.nn.Parameter(ramp(device, 4))]
    buffer = torch.zeros(12).to(device)
    offset = 0
    for p in parameters:
        place = buffer[offset : offset + p.numel()].view(p.shape)
        place.copy_(p.data)
        p.data = place
        offset += p.numel()
    return buffer, parameters


def flat_parameter_buffer(device: str) -> tuple:
    buffer, parameters = _flat_parameters(device)
    buffer.mul_(2)
    parameters[0].data.add_(1)
    return buffer, *parameters


def flat_buffer_in_forward(device: str) -> tuple:
    buffer, (weight, bias) = _flat_parameters(device)
    loss = (ramp(device, 5, 2) @ weight.t()).sum() + bias.square().sum()
    loss.backward()
    return buffer, weight.grad, bias.grad, loss


def flat_gradient_buffer(device: str) -> tuple:
    """``main_grad`` views filled by hooks of the gradient accumulators, then the buffer is scaled."""
    _, parameters = _flat_parameters(device)
    grads = torch.zeros(10).to(device)
    grads_in = iter((grads[:6].view(3, 2), grads[6:]))
    kept = []
    for p in parameters:
        p.main_grad = next(grads_in)

        def accumulate(*_: Any, p: torch.nn.Parameter = p) -> None:
            p.main_grad.add_(p.grad.data)
            p.grad = None

        node = p.expand_as(p).grad_fn.next_functions[0][0]
        node.register_hook(accumulate)
        kept.append(node)
    for _ in range(3):
        sum((p * p).sum() for p in parameters).backward()
    grads /= 3
    return grads, parameters[0].main_grad, parameters[0].grad is None


def flat_buffer_shards(device: str) -> tuple:
    """Distributed optimizer: each rank's shard is a view that crosses the parameters' borders."""
    buffer, parameters = _flat_parameters(device)
    shard = buffer[4:8]
    master = shard.clone().float()
    master.sub_(0.25)
    shard.copy_(master)
    return buffer, *parameters


def flat_buffer_bfloat16(device: str) -> tuple:
    buffer = torch.zeros(8, dtype=torch.bfloat16).to(device)
    p = torch.nn.Parameter(ramp(device, 2, 4, dtype=torch.bfloat16))
    buffer.copy_(p.data.view(-1))
    p.data = buffer.view(2, 4)
    buffer[2:6].zero_()
    return p, buffer


def flat_buffer_released(device: str) -> tuple:
    """The buffer's storage is emptied between steps and filled again; views stay views."""
    buffer, parameters = _flat_parameters(device)
    size = buffer.untyped_storage().size()
    saved = buffer.cpu().clone()
    buffer.untyped_storage().resize_(0)
    buffer.untyped_storage().resize_(size)
    buffer.copy_(saved)
    parameters[1].data.add_(1)
    return buffer, *parameters


def flatten_unflatten(device: str) -> tuple:
    tensors = [ramp(device, 2, 3), ramp(device, 4)]
    flat = torch._utils._flatten_dense_tensors(tensors)
    pieces = torch._utils._unflatten_dense_tensors(flat, tensors)
    flat.mul_(-1)
    return flat, *pieces, *tensors


def foreach_copy_into_views(device: str) -> tuple:
    buffer = torch.zeros(10).to(device)
    torch._foreach_copy_([buffer[:4], buffer[4:]], [ramp(device, 4), ramp(device, 6)])
    return (buffer,)


def foreach_mul_on_views(device: str) -> tuple:
    buffer = ramp(device, 10)
    views = [buffer[:4], buffer[4:10:2]]
    torch._foreach_mul_(views, 2.0)
    return buffer, views[0]._version, views[1]._version


def gradient_is_view_of_buffer(device: str) -> tuple:
    p = torch.nn.Parameter(ramp(device, 4))
    buffer = torch.zeros(8).to(device)
    p.grad = buffer[2:6]
    (p * p).sum().backward()
    (p * 3).sum().backward()
    return buffer, p.grad


# --- saved tensors and version counters ---------------------------------------------------------------------


def saved_tensor_changed(device: str) -> tuple:
    x = ramp(device, 4).requires_grad_()
    y = x.exp()
    y.add_(1)
    return (message(lambda: y.sum().backward()),)


def saved_input_changed_through_view(device: str) -> tuple:
    x = ramp(device, 4).requires_grad_()
    base = x * 1
    z = base * base
    base[:2].zero_()
    return (message(lambda: z.sum().backward()),)


def saved_tensor_changed_behind_its_back(device: str) -> tuple:
    """``.data`` hides a write from autograd: the gradient uses the new values, as on CPU."""
    w = ramp(device, 4).requires_grad_()
    y = w * w
    w.data.mul_(2)
    y.sum().backward()
    return w, w.grad


def saved_tensor_storage_released(device: str) -> tuple:
    """Activation whose storage is emptied and restored before backward."""
    x = ramp(device, 4).requires_grad_()
    h = x * 2
    y = h * h
    kept = h.detach().cpu().clone()
    h.untyped_storage().resize_(0)
    h.untyped_storage().resize_(16)
    with torch.no_grad():
        torch.empty(0, device=device).set_(h.untyped_storage(), 0, (4,), (1,)).copy_(kept)
    y.sum().backward()
    return (x.grad,)


def saved_tensors_hooks(device: str) -> tuple:
    x = ramp(device, 4).requires_grad_()
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: packed.append(t.device.type) or t.cpu(), lambda t: t.to(device)
    ):
        y = (x * x).exp().sum() * 1e-6
    y.backward()
    return x.grad, len(packed)


def versions_count_writes(device: str) -> tuple:
    x = ramp(device, 4)
    counts = [x._version]
    for write in (x.add_, x[1:].sub_, x.data.add_, x.detach().mul_):
        write(2)
        counts.append(x._version)
    torch.mul(x, 2, out=x)
    counts.append(x._version)
    x.resize_(2)
    counts.append(x._version)
    return x, *counts


def versions_shared_by_views(device: str) -> tuple:
    x = ramp(device, 2, 3)
    a, b = x[0], x.t()
    a.add_(1)
    return x._version, a._version, b._version


def inplace_on_leaf(device: str) -> tuple:
    x = ramp(device, 4).requires_grad_()
    with torch.no_grad():
        x.add_(1)
    return message(lambda: x.add_(1)), message(lambda: x[0].add_(1)), x, x._version


def inplace_on_expanded(device: str) -> tuple:
    x = ramp(device, 1, 3).expand(4, 3)
    return (message(lambda: x.add_(torch.ones(4, 3).to(device))),)


def inplace_overlapping_out(device: str) -> tuple:
    x = ramp(device, 6)
    return (message(lambda: torch.add(x[:5], 1.0, out=x[1:])),)


def inplace_on_output_of_unbind(device: str) -> tuple:
    x = ramp(device, 3, 2).requires_grad_()
    return ("is a view" in message(lambda: (x * 1).unbind(0)[0].add_(1)),)


def out_resizes(device: str) -> tuple:
    out = torch.empty(0, device=device)
    held = out
    torch.mm(ramp(device, 2, 3), ramp(device, 3, 2), out=out)
    return out, held.is_set_to(out), out.untyped_storage().nbytes()


def out_is_strided_view(device: str) -> tuple:
    base = torch.zeros(4, 6).to(device)
    torch.mm(ramp(device, 3, 2), ramp(device, 2, 4), out=base.t()[:3, :])
    return (base,)


def out_aliases_input(device: str) -> tuple:
    x = ramp(device, 4)
    torch.cumsum(x, 0, out=x)
    return (x,)


def results_do_not_alias_inputs(device: str) -> tuple:
    x = ramp(device, 4)
    results = [x + 0, x * 1, x.clone(), x.to(torch.float64).to(torch.float32), torch.cat([x]), x.abs()]
    for r in results:
        r.zero_()
    return (x,)


def no_copies_where_none_are_due(device: str) -> tuple:
    x = ramp(device, 4, 2)
    views = [x.contiguous(), x.float(), x.reshape(8), x.to(device), x.expand_as(x), x.broadcast_to(4, 2)]
    return tuple(v.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for v in views)


def transpose_inplace(device: str) -> tuple:
    x = ramp(device, 2, 3)
    alias = x.view(-1)
    x.t_()
    x[0, 1] = 50
    return x, alias


def squeeze_inplace(device: str) -> tuple:
    x = ramp(device, 2, 1, 3)
    x.squeeze_(1).unsqueeze_(0)
    return (x,)


def swap_tensors(device: str) -> tuple:
    a, b = ramp(device, 2), ramp(device, 3)
    torch.utils.swap_tensors(a, b)
    return a, b


def view_as_other_dtype(device: str) -> tuple:
    x = ramp(device, 4)
    bits = x.view(torch.int32)
    bits[0] = 0
    return x, bits


def complex_views(device: str) -> tuple:
    pairs = ramp(device, 3, 2)
    z = torch.view_as_complex(pairs)
    z.real.add_(1)
    torch.view_as_real(z)[..., 1].mul_(2)
    return (pairs,)


def conj_view(device: str) -> tuple:
    z = torch.view_as_complex(ramp(device, 3, 2))
    c = z.conj()
    z.imag.add_(1)
    return torch.view_as_real(c.resolve_conj()), c.is_conj()


def copy_between_overlapping_views(device: str) -> tuple:
    x = ramp(device, 8)
    x[:4].copy_(x[4:])
    return (x,)


def copy_transposed(device: str) -> tuple:
    x = ramp(device, 3, 4)
    y = torch.zeros(4, 3).to(device)
    y.t().copy_(x)
    return x, y


def copy_to_cpu_view(device: str) -> tuple:
    host = torch.zeros(3, 4)
    host[:, 1:3].copy_(ramp(device, 3, 2))
    return (host.to(device),)


def deepcopy_keeps_sharing(device: str) -> tuple:
    import copy

    base = ramp(device, 6)
    first, second = copy.deepcopy([base[:3], base[2:]])
    first.add_(100)
    return first, second, base


def module_to_and_tied_weights(device: str) -> tuple:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    with torch.no_grad():
        model[0].weight.copy_(ramp("cpu", 2, 2))
    model.to(device)
    model(ramp(device, 1, 2)).sum().backward()
    return model[0].weight is model[1].weight, model[0].weight.grad, model[0].weight


PROGRAMS = (
    *(data_swap, data_swap_keeps_grad_accumulator, data_shares_memory, data_swap_between_dtypes),
    *(data_swap_under_optimizer, set_to_other_tensor, set_to_storage, set_to_whole_storage, set_empty),
    *(set_grows_storage, resize_smaller_keeps_bytes, resize_larger_keeps_prefix, resize_to_zero_and_back),
    *(resize_channels_last, resize_channels_last_same_size, resize_as, resize_view_of_larger_storage),
    *(resize_leaf_that_requires_grad, storage_resize_zero_and_back, storage_resize_seen_by_views),
    *(storage_resize_grows_keeping_prefix, storage_shrink_keeps_prefix, storage_copy, storage_clone),
    *(flat_parameter_buffer, flat_buffer_in_forward, flat_gradient_buffer, flat_buffer_shards),
    *(flat_buffer_bfloat16, flat_buffer_released, flatten_unflatten, foreach_copy_into_views),
    *(foreach_mul_on_views, gradient_is_view_of_buffer, saved_tensor_changed),
    *(saved_input_changed_through_view, saved_tensor_changed_behind_its_back, saved_tensor_storage_released),
    *(saved_tensors_hooks, versions_count_writes, versions_shared_by_views, inplace_on_leaf),
    *(inplace_on_expanded, inplace_overlapping_out, inplace_on_output_of_unbind, out_resizes),
    *(out_is_strided_view, out_aliases_input, results_do_not_alias_inputs, no_copies_where_none_are_due),
    *(transpose_inplace, squeeze_inplace, swap_tensors, view_as_other_dtype, complex_views, conj_view),
    *(copy_between_overlapping_views, copy_transposed, copy_to_cpu_view, deepcopy_keeps_sharing),
    module_to_and_tied_weights,
)


OPAQUE_GAPS = {
    inplace_overlapping_out: "lowerings do not refuse an out= that overlaps an input",
}
"""Known differences of opaque memory."""


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_same_program_as_on_cpu(program: Callable[[str], tuple], request: pytest.FixtureRequest) -> None:
    if _runtime.opaque_memory() and program in OPAQUE_GAPS:
        request.applymarker(pytest.mark.xfail(reason=OPAQUE_GAPS[program], strict=True))
    same(program)
