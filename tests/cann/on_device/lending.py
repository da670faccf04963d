"""Memory lent to MindSpore on target Ascend: no ms.Tensor that is kept for the next time gets stale.

The reference is torch on the CPU, which makes the same calls. Run by tests/cann/test_device.py.
"""

from __future__ import annotations

import itertools
import random

import mindspeed_ms.patch  # noqa: F401 - the device
import pytest
import torch
from mindspeed_ms import _runtime

from tests.cann import counters

Pair = tuple[torch.Tensor, torch.Tensor]


def pair(*shape: int, seed: int = 0) -> Pair:
    """The same numbers on the device and on the host."""
    host = torch.randint(-8, 8, shape, generator=torch.Generator().manual_seed(seed)).float()
    return host.to("npu"), host


def test_lending_again_costs_nothing():
    x, _ = pair(4, 6)
    lent = _runtime.to_mindspore(x)
    assert _runtime.to_mindspore(x) is lent
    part = _runtime.to_mindspore(x[1:3])
    assert _runtime.to_mindspore(x[1:3]) is part
    assert _runtime.to_mindspore(x[2:4]) is not part
    assert _runtime.to_mindspore(x.t()).shape == (6, 4)
    assert _runtime.to_mindspore(x) is lent
    y = x * 2
    assert _runtime.to_mindspore(y) is _runtime.to_mindspore(y.detach())


def test_a_write_through_another_view_is_seen():
    for write in (
        lambda t: t[1:3, 2:].add_(1),
        lambda t: t.t()[2].mul_(3),
        lambda t: t.view(-1)[5:9].zero_(),
        lambda t: t.view(torch.int32).view(-1)[:3].fill_(0),
        lambda t: t[0].copy_(t[3]),
        lambda t: t.data.div_(2),
    ):
        x, host = pair(4, 6)
        views = (lambda t: t, lambda t: t[1:3], lambda t: t.t(), lambda t: t[:, 3:], lambda t: t.view(3, 8))
        for view in views:  # lent once before
            assert (view(x) * 2).cpu().equal(view(host) * 2)
        write(x)
        write(host)
        for view in views:
            assert (view(x) * 2).cpu().equal(view(host) * 2)
            assert view(x).sum().item() == view(host).sum().item()
            assert view(x).cpu().equal(view(host))


def test_a_resized_storage_is_lent_anew():
    x, host = pair(4, 6)
    before = _runtime.to_mindspore(x)
    alias, host_alias = x[1], host[1]
    assert (alias + 1).cpu().equal(host_alias + 1)
    x.resize_(8, 6)
    host.resize_(8, 6)
    assert _runtime.to_mindspore(x) is not before
    for t in (x, host):
        t[4:].fill_(7)
        t[1].add_(2)
    assert (x * 1).cpu().equal(host)
    assert (alias * 1).cpu().equal(host_alias)  # a view of the storage that grew
    x.untyped_storage().resize_(0)
    x.untyped_storage().resize_(8 * 6 * 4)
    x.copy_(host)
    assert (x + 0).cpu().equal(host)


def test_a_tensor_that_is_set_to_another_storage_is_lent_anew():
    (x, host), (y, other) = pair(4, 6), pair(6, 4, seed=1)
    assert (x + 1).cpu().equal(host + 1)
    old = x[:]
    for a, b in ((x, y), (host, other)):
        a.set_(b)
        a.add_(5)
    assert (x + 0).cpu().equal(host)
    assert (y + 0).cpu().equal(other)
    assert (old + 0).cpu().equal(pair(4, 6)[1])
    x.data = old
    assert (x * 3).cpu().equal(pair(4, 6)[1] * 3)


def test_more_views_than_are_kept():
    x, host = pair(3000)
    for round_ in range(2):
        for i in range(0, 2400, 2):
            x[i : i + 3].add_(round_ + 1)
            host[i : i + 3].add_(round_ + 1)
    assert (x + 0).cpu().equal(host)


@pytest.mark.parametrize(
    ("write", "launch"),
    [
        (lambda t: t.zero_(), "aclnnInplaceFillScalar"),
        (lambda t: t.fill_(2), "aclnnInplaceFillScalar"),
        (lambda t: t.add_(1), "aclnnInplaceAdds"),
        (lambda t: t.sub_(t), "aclnnInplaceSub"),
        (lambda t: t.mul_(0.5), "aclnnInplaceMuls"),
        (lambda t: t.div_(2), "aclnnInplaceDivs"),
    ],
)
def test_in_place_operators_are_one_launch(write, launch):
    x, host = pair(4, 6)
    for t in (x, x[1:3]):
        _runtime.to_mindspore(t)
        torch.cuda.synchronize()
        counters.reset()
        write(t)
        torch.cuda.synchronize()
        assert counters.read()["launches"] == {launch: 1}
    write(host)
    write(host[1:3])
    assert x.cpu().equal(host)


@pytest.mark.parametrize(
    ("copy", "launch"),
    [
        (lambda t: t.clone(), "aclnnInplaceCopy"),
        (lambda t: t.t().clone(), "aclnnInplaceCopy"),
        (lambda t: t.t().contiguous(), "aclnnInplaceCopy"),
        (lambda t: t[1:3, 2:].contiguous(), "aclnnInplaceCopy"),
        (lambda t: t[:, ::2].clone(), "aclnnInplaceCopy"),
        (lambda t: t.expand(2, 4, 6).clone(), "aclnnInplaceCopy"),
        (lambda t: t.view(torch.int32).clone(), "aclnnInplaceCopy"),
        (lambda t: t.bfloat16(), "aclnnCast"),
        (lambda t: t.t().to(torch.int64), "aclnnCast"),
        (lambda t: t[2].half(), "aclnnCast"),
        (lambda t: t[:, 1:].half(), "aclnnInplaceCopy"),
    ],
)
def test_a_copy_is_one_launch_and_keeps_the_strides_of_torch(copy, launch):
    x, host = pair(4, 6)
    _runtime.to_mindspore(x)
    torch.cuda.synchronize()
    counters.reset()
    made = copy(x)
    torch.cuda.synchronize()
    assert counters.read()["launches"] == {launch: 1}
    expected = copy(host)
    assert made.stride() == expected.stride()
    assert made.cpu().equal(expected)
    x.zero_()
    assert made.cpu().equal(expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_narrow_is_added_in_place_by_one_launch(dtype):
    x, host = pair(4, 6)
    _, other = pair(6, 4, seed=1)
    y = (other / 3).to(dtype).to("npu").t()
    _runtime.to_mindspore(x), _runtime.to_mindspore(y.contiguous())
    for t, narrow in ((x, y), (host, (other / 3).to(dtype).t())):
        t.add_(narrow.contiguous())
        t.sub_(narrow, alpha=2)
        t.t()[1].add_(narrow[0, 0])
    assert x.cpu().equal(host)
    flat = y.contiguous()
    _runtime.to_mindspore(flat)
    torch.cuda.synchronize()
    counters.reset()
    x.add_(flat)
    torch.cuda.synchronize()
    assert counters.read()["launches"] == {"aclnnInplaceAdd": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bfloat16, torch.bool], ids=str)
def test_what_comes_from_the_host_is_not_copied_on_the_device(dtype):
    for host in (torch.arange(12).view(3, 4), torch.tensor(3), torch.arange(12).view(3, 4).t()):
        host = host.to(dtype)
        counters.reset()
        x = host.to("npu")
        copies = counters.read()["launches"].get("aclnnInplaceCopy", 0)
        # Some cross as other elements, and a transposed one in the order in which it lies.
        assert copies <= (dtype in (torch.bfloat16, torch.bool) or not host.is_contiguous())
        assert x.cpu().equal(host)
        assert (x + x).cpu().equal(host + host)
        x[..., :1].zero_() if x.dim() else x.zero_()
        host[..., :1].zero_() if host.dim() else host.zero_()
        assert x.cpu().equal(host)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        *((torch.float64, value) for value in (0.1, 1 / 3, float("inf"), 1e300)),
        *((torch.float32, 0.1), (torch.float32, 1e-40), (torch.bfloat16, 0.1), (torch.float16, 65504.0)),
        *((torch.int64, 2**53 + 1), (torch.int64, -(2**62) - 1), (torch.int32, 2**31 - 1)),
        *((torch.uint8, 255), (torch.int8, -128), (torch.int16, 32767)),
    ],
    ids=str,
)
def test_a_fill_writes_the_number_itself(dtype, value):
    host = torch.full((3,), value, dtype=dtype)
    assert torch.full((3,), value, dtype=dtype, device="npu").cpu().equal(host)
    strided = torch.zeros(3, 2, dtype=dtype, device="npu")[:, 0].fill_(value)
    assert strided.cpu().equal(host)


def test_a_number_without_dimensions_is_read_as_other_elements():
    for made in (torch.ones((), device="npu") + 1, torch.full((), 2.0, device="npu")):
        seen = made.view(1).view(torch.uint8)
        assert (seen + 0).tolist() == torch.full((1,), 2.0).view(torch.uint8).tolist()
        made.fill_(3.0)
        assert (seen + 0).tolist() == torch.full((1,), 3.0).view(torch.uint8).tolist()


def test_a_number_that_does_not_fit_is_refused():
    for dtype, value in ((torch.float16, 65519.0), (torch.int8, 200)):
        with pytest.raises(RuntimeError, match="cannot be converted"):
            torch.zeros(3, dtype=dtype, device="npu").fill_(value)


def test_an_argument_that_a_form_hands_back_is_copied():
    x, host = pair(4, 6)
    same, twice = _runtime.on_mindspore(lambda t, others: (t, others[0]), x, [x])
    same.zero_()
    twice.zero_()
    assert x.cpu().equal(host)


def test_live_storages_have_addresses_of_their_own():
    sizes = [1, 1000, 5000, 4096, 2**20, 70000] * 20
    kept = [torch.empty(n, dtype=torch.uint8, device="npu") for n in sizes]
    del kept[::3]
    kept += [torch.empty(n, dtype=torch.uint8, device="npu") for n in sizes]
    ranges = sorted((t.data_ptr(), t.data_ptr() + t.numel()) for t in kept)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ranges))


VIEWS = (
    lambda t, r: t[r.randrange(len(t)) :] if t.dim() and len(t) else t,
    lambda t, r: t.mT if t.dim() > 1 else t,
    lambda t, r: t[..., r.randrange(t.shape[-1])] if t.dim() > 1 else t,
    lambda t, r: t.view(-1) if t.is_contiguous() else t,
    lambda t, r: t[::2] if t.dim() and len(t) > 2 else t,
    lambda t, r: t.unsqueeze(0),
)
WRITES = (
    lambda t, r: t.add_(r.randrange(1, 5)),
    lambda t, r: t.add_(t, alpha=2),
    lambda t, r: t.sub_(torch.full_like(t, 3)),
    lambda t, r: t.mul_(t[:1].clone() if t.dim() else t),
    lambda t, r: t.clamp_(-50, 50),
    lambda t, r: t.zero_(),
    lambda t, r: t.fill_(r.randrange(9)),
    lambda t, r: t.copy_(t.flip(0) if t.dim() else t),
    lambda t, r: t.neg_(),
    lambda t, r: torch.mul(t.clone(), 2, out=t),
)


def _random_calls(x: torch.Tensor, seed: int) -> list[torch.Tensor]:
    r = random.Random(seed)
    live = [x]
    for _ in range(60):
        t = live[r.randrange(len(live))]
        kind = r.random()
        if kind < 0.4:
            t = VIEWS[r.randrange(len(VIEWS))](t, r)
            if t.numel() and t.dim() < 5:
                live.append(t)
        elif kind < 0.9:
            WRITES[r.randrange(len(WRITES))](t, r)
            t.clamp_(-1000, 1000)
        elif kind < 0.95:
            live.append((t * 2 - 1).contiguous())  # as every result of the device is
        else:
            x.resize_(x.shape[0] + 1, x.shape[1])[-1].fill_(r.randrange(9))
        live = live[-12:]
    return [x, *live]


@pytest.mark.parametrize("seed", range(12))
def test_random_views_and_writes(seed):
    x, host = pair(5, 6)
    found, expected = _random_calls(x, seed), _random_calls(host, seed)
    for got, want in zip(found, expected, strict=True):
        assert got.cpu().equal(want)
        assert (got + 0).cpu().equal(want)
