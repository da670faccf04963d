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
dist.barrier()
print("ok", flush=True)
