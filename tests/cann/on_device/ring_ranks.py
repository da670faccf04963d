"""One rank of ring attention on simulated HCCL; prints "ok" when its rows are plain torch's in float64.

Each step's operator gives its part of the gradients from maximum, sum and output of all steps: wrong by far
where it made the sum over a row of its own keys only.
"""

import mindspeed_ms.patch  # noqa: F401 - makes device npu
import torch
import torch.distributed as dist
from mindspeed_ms.kernels import context_parallel_attention
from mindspeed_ms.routes import coverage

ROWS, BATCH, HEADS, GROUPS, DIM, VALUES = 12, 2, 4, 2, 32, 16
FORMS = {"mindspeed_ms::ring_step", "mindspeed_ms::ring_merge", "mindspeed_ms::ring_step_backward"}
ERROR = 2e-2  # partial results and their sum are rounded to bfloat16's 8 bits

dist.init_process_group("nccl")
rank, world = dist.get_rank(), dist.get_world_size()


def share(whole: torch.Tensor) -> torch.Tensor:
    chunks = whole.chunk(2 * world)
    return torch.cat([chunks[rank], chunks[2 * world - 1 - rank]])


def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> torch.Tensor:
    parts = (x.permute(1, 2, 0, 3) for x in (query, key, value))
    out = torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=causal, enable_gqa=True)
    return out.permute(2, 0, 1, 3)


generator = torch.Generator().manual_seed(3)
shapes = ((HEADS, DIM), (GROUPS, DIM), (GROUPS, VALUES), (HEADS, VALUES))
*inputs, weight = (
    torch.randn(ROWS * world, BATCH, *shape, generator=generator).bfloat16().double() for shape in shapes
)
for causal in (True, False):
    exact = [x.clone().requires_grad_() for x in inputs]
    expected = plain(*exact, causal)
    expected.backward(weight)
    mine = [share(x).to("cuda", torch.bfloat16).requires_grad_() for x in inputs]
    coverage.reset()
    found = context_parallel_attention(*mine, dist.group.WORLD, method="p2p", causal=causal)
    found.backward(share(weight).to(found))
    assert {row["op"] for row in coverage.snapshot() if row["route"] == "mindspore"} >= FORMS
    pairs = zip((found, *(x.grad for x in mine)), (expected, *(x.grad for x in exact)), strict=True)
    for got, want in pairs:
        error = (got.detach().cpu().double() - share(want.detach())).abs().max()
        assert error <= ERROR * want.abs().max(), (rank, causal, error, want.abs().max())
dist.barrier()
print("ok", flush=True)
