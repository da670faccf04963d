"""Collectives of the backend against closed forms: forms, views, element types, sub-groups, threads, life
cycle."""

import threading
import time
from datetime import timedelta

import pytest
import ranks
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

pytestmark = pytest.mark.distributed

SIZES = (0, 1, 1000, 70_001, 1_000_003)  # empty, one-hop, one slot, several slots, a ring several times over


def every_form(rank, world, store):
    ranks.init(rank, world, store)
    for n in SIZES:
        ramp = torch.arange(n) % 7
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int8):
            t = (ramp + rank).to(dtype)
            dist.all_reduce(t)
            assert torch.equal(t, (ramp * world + sum(range(world))).to(dtype)), (n, dtype)
        x = torch.randn(n, generator=torch.Generator().manual_seed(rank))
        everyone = [torch.randn(n, generator=torch.Generator().manual_seed(r)) for r in range(world)]
        out = torch.empty(n * world)
        dist.all_gather_single(out, x)
        assert torch.equal(out, torch.cat(everyone))
        listed = [torch.empty(n) for _ in range(world)]
        dist.all_gather(listed, x)
        assert all(map(torch.equal, listed, everyone))
        part = torch.empty(n)
        dist.reduce_scatter_single(part, torch.cat([x * (r + 1) for r in range(world)]))
        expected = sum(e.double() for e in everyone) * (rank + 1)
        assert torch.allclose(part.double(), expected, rtol=1e-5, atol=1e-5)
        dist.reduce_scatter(part, [x] * world, op=dist.ReduceOp.MAX)
        assert torch.equal(part, torch.stack(everyone).amax(0))
        t = x.clone()
        dist.broadcast(t, world - 1)
        assert torch.equal(t, everyone[-1])
        t = x.clone()
        dist.reduce(t, 0, op=dist.ReduceOp.MIN)
        assert torch.equal(t, torch.stack(everyone).amin(0) if rank == 0 else x)
        gathered = [torch.empty(n) for _ in range(world)] if rank == 1 else None
        dist.gather(x, gathered, dst=1)
        assert rank != 1 or all(map(torch.equal, gathered, everyone))
        dist.scatter(t, [e * 2 for e in everyone] if rank == 0 else None, src=0)
        assert torch.equal(t, x * 2)
        out = torch.empty(n * world)
        dist.all_to_all_single(out, torch.cat([x + r for r in range(world)]))
        assert torch.equal(out, torch.cat([e + rank for e in everyone]))
        splits = [r + 1 for r in range(world)]
        rows = torch.full((sum(splits), 3), float(rank))
        out = torch.empty(world * (rank + 1), 3)
        dist.all_to_all_single(out, rows, [rank + 1] * world, splits)
        assert torch.equal(out[:, 0], torch.arange(world).float().repeat_interleave(rank + 1))
        q = torch.empty(n)
        requests = [
            dist.P2POp(dist.isend, x, (rank + 1) % world),
            dist.P2POp(dist.irecv, q, (rank - 1) % world),
        ]
        for request in dist.batch_isend_irecv(requests):
            request.wait()
        assert torch.equal(q, everyone[(rank - 1) % world])
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_every_form(world):
    ranks.run(every_form, world)


def reductions(rank, world, store):
    ranks.init(rank, world, store)
    values = torch.tensor([rank + 1, 5 - rank, 3, -rank])
    everyone = torch.stack([torch.tensor([r + 1, 5 - r, 3, -r]) for r in range(world)])
    op = dist.ReduceOp
    xor = everyone[0].clone()
    for row in everyone[1:]:
        xor ^= row
    for reduction, expected in ((op.PRODUCT, everyone.prod(0)), (op.BXOR, xor)):
        t = values.clone()
        dist.all_reduce(t, reduction)
        assert torch.equal(t, expected)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        t = values.to(dtype)
        dist.all_reduce(t, op.AVG)
        assert torch.equal(t, everyone.double().mean(0).to(dtype))
        t = values.to(dtype)
        dist.all_reduce(t, dist._make_nccl_premul_sum(0.25))
        assert torch.equal(t, (everyone.double() * 0.25).sum(0).to(dtype))
    flags = torch.tensor([rank == 0, True, False])
    dist.all_reduce(flags)
    assert flags.tolist() == [True, True, False]
    # Accumulation in float32, rounded once: in bfloat16 steps 256 + 1 + 1 stays 256.
    t = torch.tensor([256.0 if rank == 0 else 1.0], dtype=torch.bfloat16)
    dist.all_reduce(t)
    assert t.item() == torch.tensor(256.0 + world - 1).to(torch.bfloat16).item()
    t = torch.tensor([1.0, float("nan") if rank == 1 else 2.0])
    dist.all_reduce(t, op.MAX)
    assert t[0] == 1
    assert t[1].isnan()
    with pytest.raises(TypeError, match=r"BAND is not defined for torch.float32"):
        dist.all_reduce(torch.ones(1), op.BAND)
    with pytest.raises(TypeError, match="cannot reduce or send"):
        dist.all_reduce(torch.ones(4).to(torch.float8_e4m3fn))
    moved = torch.full((5,), float(rank)).to(torch.float8_e4m3fn)
    dist.broadcast(moved, 1)
    assert (moved.float() == 1).all()
    z = torch.full((3,), 1 + 1j * rank)
    dist.all_reduce(z)
    assert torch.equal(z, torch.full((3,), world + 1j * sum(range(world))))
    dist.destroy_process_group()


def root_outside(rank, world, store):
    ranks.init(rank, world, store)
    for call in (dist.broadcast, dist.reduce):
        with pytest.raises(ValueError, match="rank 6 is not in group"):
            call(torch.zeros(3), 6)
    dist.barrier()


def test_a_root_that_does_not_exist_is_an_error():
    ranks.run(root_outside, 2)


def test_reductions_and_element_types():
    ranks.run(reductions, 3)


def views(rank, world, store):
    ranks.init(rank, world, store)
    base = torch.arange(12.0).reshape(3, 4) * (rank + 1)
    expected = torch.arange(12.0).reshape(3, 4) * sum(range(1, world + 1))
    dist.all_reduce(base.t())
    assert torch.equal(base, expected)
    columns = torch.zeros(4, 3)
    dist.all_gather([columns[:, 0], columns[:, 2]], torch.full((4,), rank + 1.0))
    assert columns.tolist() == [[1, 0, 2]] * 4
    flat = torch.zeros(2 * world)  # Megatron's in-place forms: the input is a view of the output, or reversed
    mine = flat[2 * rank : 2 * rank + 2].fill_(rank + 1)
    dist.all_gather_single(flat, mine)
    assert flat.tolist() == [1, 1, 2, 2]
    dist.reduce_scatter_single(mine, flat)
    assert mine.tolist() == [2 * (rank + 1)] * 2
    strided = torch.zeros(6)[::2]
    if rank == 0:
        dist.send(torch.tensor([1.0, 2, 3]), 1)
    else:
        dist.recv(strided, 0)
        assert strided.tolist() == [1, 2, 3]
    leaf = torch.ones(3, requires_grad=True)
    dist.all_reduce(leaf.data)
    assert leaf.tolist() == [2, 2, 2]
    dist.destroy_process_group()


def test_non_contiguous_and_aliased():
    ranks.run(views, 2)


def asynchronous(rank, world, store):
    ranks.init(rank, world, store)
    tensors = [torch.full((50_000 + i,), float(rank)) for i in range(8)]
    works = [dist.all_reduce(t, async_op=True) for t in tensors]
    futures = [w.get_future() for w in works]
    for future, t in zip(futures, tensors, strict=True):
        assert future.wait()[0] is t
        assert (t == sum(range(world))).all()
    assert all(w.is_completed() and w.is_success() and w.exception() is None for w in works)
    dropped = torch.ones(200_000)
    dist.all_reduce(dropped, async_op=True)  # nobody keeps the Work, nor waits
    dist.barrier()
    assert (dropped == world).all()
    with dist._coalescing_manager(async_ops=True) as manager:
        for t in tensors:
            dist.all_reduce(t)
    manager.wait()
    assert all((t == sum(range(world)) * world).all() for t in tensors)
    outs = [torch.empty(world * 5) for _ in range(3)]
    with dist._coalescing_manager(device=torch.device("cpu"), async_ops=True) as manager:
        for i, out in enumerate(outs):
            dist.all_gather_single(out, torch.full((5,), float(rank + i)))
    manager.wait()
    assert all(out[-1] == world - 1 + i for i, out in enumerate(outs))
    # Tags out of order, any source, to oneself.
    if rank == 0:
        for tag in (3, 1, 2):
            dist.send(torch.full((40_000,), float(tag)), 1, tag=tag)
    elif rank == 1:
        for tag in (1, 2, 3):
            got = torch.empty(40_000)
            assert dist.recv(got, 0 if tag != 2 else None, tag=tag) == 0
            assert (got == tag).all()
    own = torch.empty(3)
    request = dist.isend(torch.arange(3.0), rank)
    dist.irecv(own, rank).wait()
    request.wait()
    assert own.tolist() == [0, 1, 2]
    objects = [None] * world
    dist.all_gather_object(objects, {"rank": rank, "pad": "x" * (rank * 1000)})
    assert [o["rank"] for o in objects] == list(range(world))
    box = [f"from {rank}"]
    dist.broadcast_object_list(box, src=1)
    assert box == ["from 1"]
    c10d._get_default_group().monitored_barrier(timedelta(seconds=10))
    dist.destroy_process_group()


def test_asynchronous_forms():
    ranks.run(asynchronous, 3)


def groups(rank, world, store):
    ranks.init(rank, world, store)
    pairs = [dist.new_group([a, b]) for a in range(world) for b in range(a + 1, world)]
    mine = [g for g in pairs if g is not dist.GroupMember.NON_GROUP_MEMBER]
    assert len(mine) == world - 1
    failures = []

    def hammer(group):
        try:
            peers = dist.get_process_group_ranks(group)
            for i in range(30):
                t = torch.full((1000 * (i % 5) + 1,), float(rank + i))
                dist.all_reduce(t, group=group)
                assert (t == sum(peers) + 2 * i).all()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=hammer, args=(g,)) for g in mine]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    lone = dist.new_group([rank], use_local_synchronization=True)
    t = torch.ones(3)
    dist.all_reduce(t, group=lone)
    assert t.tolist() == [1, 1, 1]
    mesh = dist.init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("dp", "tp"))
    t = torch.tensor([float(rank)])
    dist.all_reduce(t, group=mesh["tp"].get_group())
    row = rank // (world // 2)
    assert t.item() == sum(range(row * (world // 2), (row + 1) * (world // 2)))
    half = c10d._get_default_group().split_group([0, 2] if rank % 2 == 0 else [1, 3])
    t = torch.tensor([float(rank)])
    half.allreduce(t).wait()
    assert t.item() == (2 if rank % 2 == 0 else 4)
    from torch.distributed import _functional_collectives as functional

    summed = functional.all_reduce(torch.ones(4), "sum", dist.group.WORLD)
    assert (summed + 0 == world).all()
    gathered = functional.all_gather_tensor(torch.full((2,), float(rank)), 0, dist.group.WORLD)
    assert torch.equal(gathered + 0, torch.arange(world).float().repeat_interleave(2))
    for _ in range(3):  # the store outlives the groups: nothing of a generation may meet the next
        dist.destroy_process_group()
        ranks.init(rank, world, store)
        t = torch.ones(2)
        dist.all_reduce(t)
        assert (t == world).all()
    dist.destroy_process_group()


def test_groups_threads_meshes_and_reinit():
    ranks.run(groups, 4)


def ddp(rank, world, store):
    ranks.init(rank, world, store)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 4))
    reference = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 4))
    reference.load_state_dict(model.state_dict())
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    data = torch.randn(world, 8, 16, generator=torch.Generator().manual_seed(1))
    wrapped(data[rank]).square().mean().backward()
    torch.stack([reference(d).square().mean() for d in data]).mean().backward()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-5, atol=1e-7)
    dist.destroy_process_group()


def test_torch_ddp():
    ranks.run(ddp, 2)


def late_receiver(rank, world, store):
    ranks.init(rank, world, store)
    if rank == 0:
        time.sleep(1)
    group = dist.new_group(list(range(world)), group_desc="late")
    t = torch.full((1000,), float(rank))
    dist.broadcast(t, 1, group=group)
    dist.destroy_process_group()
    return t[0].item()


def test_root_may_leave_before_the_others_come():
    assert ranks.run(late_receiver, 2) == [1.0, 1.0]
