"""Which engine a group gets: shared memory when its ranks share a host, shared memory plus gloo otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist
from mindspeed_ms.comm import roster
from mindspeed_ms.comm.engine import Engine, connect


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
