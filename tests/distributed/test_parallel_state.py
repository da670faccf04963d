"""Megatron's groups on MindSpore's side: names, ranks, made in MindSpore itself, destroyed with
Megatron's."""

from datetime import timedelta

import pytest
import ranks
import torch
import torch.distributed as dist

pytestmark = pytest.mark.distributed


def megatron_groups(rank, world, store, port):
    import mindspeed_ms.patch  # noqa: F401
    from mindspeed_ms import comm
    from mindspeed_ms.comm import groups

    dist.init_process_group("nccl", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    # MindSpore's own communication, so that create_group() is the real one.
    from mindspore.mint.distributed import TCPStore

    groups.start_mindspore(
        TCPStore("127.0.0.1", port, world, rank == 0, timedelta(seconds=60)),
        rank,
        world,
        timedelta(seconds=60),
    )
    from megatron.core import parallel_state
    from megatron.core.hyper_comm_grid import HyperCommGrid
    from megatron.core.process_groups_config import ProcessGroupCollection
    from mindspore.communication import get_group_size, get_world_rank_from_group_rank

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2, pipeline_model_parallel_size=2)
    collection = ProcessGroupCollection.use_mpu_process_groups()
    seen = {}
    for name in ("tp", "pp", "mp", "dp", "dp_cp", "cp", "ep", "expt_tp", "expt_dp", "embd"):
        group = getattr(collection, name, None)
        if group is None:
            continue
        known = comm.mindspore_group(group)
        expected = tuple(dist.get_process_group_ranks(group))
        assert known.ranks == expected
        assert known.created
        inside = [get_world_rank_from_group_rank(known.name, i) for i in range(get_group_size(known.name))]
        assert tuple(inside) == expected, name
        seen[name] = expected
    assert len(seen) >= 6
    t = torch.full((4,), float(rank))
    dist.all_reduce(t, group=collection.tp)
    assert (t == sum(seen["tp"])).all()
    assert "TENSOR_MODEL_PARALLEL_GROUP" in comm.mindspore_group(collection.tp).name

    grid = HyperCommGrid([2, 2], ["tp", "dp"])
    made = grid.create_pg("tp")
    assert comm.mindspore_group(made) in groups.known()

    parallel_state.destroy_model_parallel()
    assert groups.known() == ()
    with pytest.raises(ValueError, match="not a member"):
        comm.mindspore_group(dist.GroupMember.NON_GROUP_MEMBER)
    dist.destroy_process_group()
    return seen


# Slow: on two cores MindSpore's own create_group of four ranks took 40 s once and over 300 s another time.
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_groups_exist_in_mindspore():
    pytest.importorskip("einops", reason="Megatron's HyperCommGrid needs einops")
    port = ranks.free_port()
    seen = ranks.run(megatron_groups, 4, port, timeout=360)
    assert seen[0]["tp"] == (0, 1)
    assert seen[3]["tp"] == (2, 3)
    assert seen[0]["pp"] == (0, 2)
