"""Which engine a group gets.

For host memory: shared memory when its ranks share a host, shared memory plus gloo otherwise. For the memory
of an Ascend device: MindSpore's communication, that is HCCL.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cache

import torch.distributed as dist
from mindspeed_ms import device
from mindspeed_ms.comm import roster
from mindspeed_ms.comm.engine import Engine, connect
from mindspeed_ms.comm.solo import SoloEngine
from mindspeed_ms.device.mindspore import target


@cache
def through_mindspore() -> bool:
    """Whether npu tensors travel by MindSpore's communication: on target Ascend."""
    return target() == "Ascend"


def make_engine(
    store: dist.Store,
    rank: int,
    size: int,
    global_ranks: Sequence[int],
    group: str,
    timeout: timedelta,
) -> Engine:
    """Connects this rank to its group.

    Raises PeerLostError or CollectiveTimeoutError when a member does not come.
    """
    members = roster.members(store, global_ranks, timeout, group)
    if len({m.host for m in members}) == 1:
        return connect(store, rank, members, global_ranks, group, timeout)
    from mindspeed_ms.comm.hierarchy import HierarchicalEngine

    return HierarchicalEngine(store, rank, members, global_ranks, group, timeout)


def make_device_engine(group: dist.ProcessGroup) -> Engine:
    """The engine of npu tensors of a group that torch knows, where :func:`through_mindspore`.

    Makes the group in MindSpore, as all its ranks must, in the order of their first collectives; not for one
    rank alone.
    """
    if group.size() == 1:
        return SoloEngine()
    from mindspeed_ms.comm.ascend import AscendEngine
    from mindspeed_ms.comm.groups import mindspore_group
    from mindspore.mint import distributed

    known = mindspore_group(group)
    return AscendEngine(known.name, known.ranks, distributed, device.to_mindspore)
