"""Backend names: ``mindspore`` and ``hccl`` are registered; which other names mean this backend.

``patches/torch/distributed.py`` leads those here.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

BACKEND = "mindspore"
ALIASES = frozenset({"nccl", "hccl", "gloo", "xccl", "ucc", "undefined", BACKEND})
"""Backend names that mean ours. ``MPI`` and ``fake`` stay what they are."""


def register() -> None:
    """Adds ``mindspore`` and ``hccl`` to ``torch.distributed.Backend``. Idempotent."""
    for name, devices in ((BACKEND, ["cpu", "npu", "cuda"]), ("hccl", ["npu", "cuda"])):
        if name.upper() not in dist.Backend._plugins:
            dist.Backend.register_backend(name, _create, extended_api=True, devices=devices)
    dist.Backend.default_device_backend_map["npu"] = BACKEND


def _create(options: Any, backend_options: Any = None) -> dist.ProcessGroup:
    from mindspeed_ms.comm.process_group import create

    return create(options, backend_options)


def is_ours(backend: str) -> bool:
    """Whether a backend string ("nccl", "cpu:gloo,cuda:nccl", ...) names only backends that map to ours."""
    names = [part.rpartition(":")[2].strip() for part in str(backend).lower().split(",")]
    return all(name in ALIASES for name in names)


def call_as_asked(group: dist.ProcessGroup, asked: str) -> None:
    """Has torch.distributed answer `asked` for the backend of a new `group`."""
    world = c10d._world
    if group in world.pg_map and asked != "undefined":
        world.pg_map[group] = (dist.Backend(asked), world.pg_map[group][1])
        world.pg_backend_config[group] = str(c10d.BackendConfig(dist.Backend(asked)))


def group_named(name: str) -> dist.ProcessGroup:
    """The group that operators, whose arguments are no groups, are told by torch's name of it."""
    resolve: Any = c10d._resolve_process_group  # torch types names of groups, and gives them as str
    return resolve(name)


def our_group(group: dist.ProcessGroup | None) -> Any:
    """`group`, the default group for None, if it is one of this backend, else None."""
    from mindspeed_ms.comm.process_group import ProcessGroupMindSpore

    group = group if group is not None else c10d._get_default_group()
    return group if isinstance(group, ProcessGroupMindSpore) else None


def start_device_communication() -> None:
    """Where npu tensors travel through MindSpore: starts its communication, now that every rank is here."""
    from mindspeed_ms.comm import groups, topology

    if topology.through_mindspore() and our_group(None) is not None:
        groups.start_with_default_group()
