"""One rank of the package's process group on simulated HCCL; prints "ok" when every value is right."""

import mindspeed_ms.patch  # noqa: F401 - makes device npu
import torch
import torch.distributed as dist

dist.init_process_group("nccl")
rank, world = dist.get_rank(), dist.get_world_size()
x = torch.full((3,), float(rank + 1), device="cuda")
dist.all_reduce(x)
assert x.tolist() == [world * (world + 1) / 2] * 3
pieces = [torch.zeros(2, device="cuda") for _ in range(world)]
dist.all_gather(pieces, torch.full((2,), float(rank), device="cuda"))
assert [piece.tolist() for piece in pieces] == [[float(k)] * 2 for k in range(world)]
part = torch.zeros(2, device="cuda")
dist.reduce_scatter_tensor(part, torch.arange(2.0 * world, device="cuda"))
assert part.tolist() == [world * 2.0 * rank, world * (2.0 * rank + 1)]
for op, expected in ((dist.ReduceOp.SUM, 3), (dist.ReduceOp.AVG, 1.5), (dist.ReduceOp.MAX, 2)):
    strided = torch.full((6, 5), rank + 1.0, device="cuda")[:, ::2]
    dist.all_reduce(strided, op)
    assert (strided.cpu() == expected).all()
exact = torch.full((2,), 0.1 * (rank + 1), dtype=torch.float64, device="cuda")
dist.all_reduce(exact)  # HCCL adds no float64: the hosts do
assert exact.tolist() == [0.1 + 0.2] * 2
# Both send first: as two messages they would wait for each other.
got = torch.zeros(4, device="cuda")
exchange = [
    dist.P2POp(dist.isend, torch.full((4,), float(rank), device="cuda"), 1 - rank),
    dist.P2POp(dist.irecv, got, 1 - rank),
]
for work in dist.batch_isend_irecv(exchange):
    work.wait()
assert got.tolist() == [1.0 - rank] * 4
dist.barrier()
print("ok", flush=True)
