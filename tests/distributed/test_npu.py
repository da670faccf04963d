"""npu tensors, and a script written for CUDA and NCCL, unchanged."""

import numpy as np
import pytest
import ranks

pytestmark = pytest.mark.distributed


def cuda_script(rank, world, store):
    import mindspeed_ms.patch  # noqa: F401
    import torch
    import torch.distributed as dist

    torch.cuda.set_device(rank)
    device = torch.device("cuda", rank)
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl", store=store, rank=rank, world_size=world, device_id=device
    )
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        t = torch.full((1000, 30), rank + 1, device="cuda").to(dtype)
        dist.all_reduce(t.t())
        assert t.device.type == "npu"
        assert (t.cpu() == world * (world + 1) // 2).all()
    out = torch.empty(world * 5, device="cuda")
    dist.all_gather_into_tensor(out, torch.full((5,), float(rank), device="cuda"), async_op=True).wait()
    assert torch.equal(out.cpu(), torch.arange(float(world)).repeat_interleave(5))
    part = torch.empty(7, device="cuda", dtype=torch.bfloat16)
    dist.reduce_scatter_tensor(part, torch.ones(7 * world, device="cuda", dtype=torch.bfloat16))
    assert (part.cpu() == world).all()
    # Megatron's token dispatcher passes its splits as numpy arrays: rank r is sent r + 1 rows.
    rows = torch.full((sum(range(1, world + 1)), 3), float(rank), device="cuda")
    taken = torch.empty(world * (rank + 1), 3, device="cuda")
    dist.all_to_all_single(taken, rows, np.full(world, rank + 1), np.arange(1, world + 1))
    assert taken[:, 0].tolist() == [float(r) for r in range(world) for _ in range(rank + 1)]
    got = torch.empty(6, device="cuda")[::2]
    requests = [
        dist.P2POp(dist.isend, torch.full((3,), float(rank), device="cuda"), (rank + 1) % world),
        dist.P2POp(dist.irecv, got, (rank - 1) % world),
    ]
    for request in dist.batch_isend_irecv(requests):
        request.wait()
    assert (got.cpu() == (rank - 1) % world).all()
    on_cpu = torch.ones(3)
    dist.all_reduce(on_cpu)
    assert on_cpu.tolist() == [world] * 3
    mesh = dist.init_device_mesh("cuda", (world,))
    t = torch.ones(2, device="cuda")
    dist.all_reduce(t, group=mesh.get_group())
    assert t.tolist() == [world] * 2
    dist.barrier(device_ids=[rank])
    objects = [None] * world
    dist.all_gather_object(objects, rank)
    assert objects == list(range(world))
    mine = torch.arange(6.0, device="cuda").view(2, 3).t() + rank
    dist.all_gather_object(objects, {"tensor": mine})
    assert [o["tensor"].tolist() for o in objects] == [(mine - rank + r).tolist() for r in range(world)]
    box = [{"tensor": mine, "part": mine[1:]}] if rank == 1 else [None]
    dist.broadcast_object_list(box, src=1)
    assert (box[0]["tensor"].device.type, box[0]["part"].tolist()) == ("npu", (mine - rank + 1)[1:].tolist())
    taken = [None]
    dist.scatter_object_list(taken, [mine[:, :1]] * world if rank == 0 else None, src=0)
    assert taken[0].tolist() == [[0.0], [1.0], [2.0]]
    assert dist.get_backend() == "cpu:gloo,cuda:nccl"
    dist.destroy_process_group()


def test_cuda_script_unchanged():
    ranks.run(cuda_script, 2, env={"LOCAL_WORLD_SIZE": "2"})
