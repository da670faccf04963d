"""FSDP2 (torch's fully_shard) over a mesh made for "cuda", against the same model unsharded on the CPU."""

import pytest
import ranks

pytestmark = pytest.mark.distributed


def shard_and_train(rank, world, store, precision):
    import mindspeed_ms.patch  # noqa: F401
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from transformer_engine.pytorch.optimizers import FusedAdam

    torch.cuda.set_device(rank)
    dist.init_process_group(backend="nccl", store=store, rank=rank, world_size=world)
    torch.manual_seed(3)
    whole = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.LayerNorm(40), nn.Linear(40, 24))
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.LayerNorm(40), nn.Linear(40, 24))
    mesh = dist.DeviceMesh.from_group(dist.group.WORLD, "cuda")
    assert mesh.device_type == "npu"
    policy = MixedPrecisionPolicy(param_dtype=getattr(torch, precision), reduce_dtype=torch.float32)
    for layer in (model[0], model[3], model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    model.to_empty(device="cuda")
    for parameter, source in zip(model.parameters(), whole.parameters(), strict=True):
        assert parameter.device.type == "npu"
        shard = source.detach().chunk(world)[rank]
        parameter.to_local().data.copy_(shard)

    optimizers = (
        FusedAdam(model.parameters(), lr=2e-3),
        torch.optim.AdamW(whole.parameters(), lr=2e-3, weight_decay=0),
    )
    curves = [], []
    for step in range(4):
        batch = torch.randn(world, 8, 24, generator=torch.Generator().manual_seed(step))
        loss = (model(batch[rank].cuda()).float() - batch[rank].roll(1, 0).cuda()).square().mean()
        loss.backward()
        dist.all_reduce(loss.detach(), op=dist.ReduceOp.AVG)
        reference = (whole(batch) - batch.roll(1, 1)).square().mean()
        reference.backward()
        curves[0].append(loss.item())
        curves[1].append(reference.item())
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        expected = nn.utils.clip_grad_norm_(whole.parameters(), 0.05)
        tolerance = 1e-6 if precision == "float32" else 2e-2
        assert norm.full_tensor().item() == pytest.approx(expected.item(), rel=tolerance)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert curves[0] == pytest.approx(curves[1], rel=tolerance)
    full = {name: value.full_tensor() for name, value in model.state_dict().items()}
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(full[name].cpu(), value, rtol=1e-6, atol=tolerance)
    dist.destroy_process_group()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_trains_as_unsharded(precision):
    ranks.run(shard_and_train, 2, precision, env={"LOCAL_WORLD_SIZE": "2"})
