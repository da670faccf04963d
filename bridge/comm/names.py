"""Backend names: ``mindspore`` is registered, and what scripts say instead (``nccl``, ``hccl``, ...) leads
to it.

Only the functions that make groups are wrapped, never a collective. A group keeps the name that the script
gave:
``torch.distributed.get_backend()`` answers "nccl" where the script said so.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import wrapt
from mindspeed_ms import launch
from torch.distributed import distributed_c10d as c10d

BACKEND = "mindspore"
ALIASES = frozenset({"nccl", "hccl", "gloo", "xccl", "ucc", "undefined", BACKEND})
"""Backend names that mean ours once :func:`install` ran."""

DEVICES = ["cpu", "npu", "cuda"]
NCCL_TIMEOUT = timedelta(minutes=10)
"""Default timeout of NCCL groups in torch; a torch without NCCL has none and warns."""

_originals: dict[str, Any] = {}


def register() -> None:
    """Adds ``mindspore`` to ``torch.distributed.Backend``. Idempotent."""
    if BACKEND.upper() not in dist.Backend._plugins:
        dist.Backend.register_backend(BACKEND, _create, extended_api=True, devices=DEVICES)
        dist.Backend.default_device_backend_map["npu"] = BACKEND


def _create(options: Any, backend_options: Any = None) -> dist.ProcessGroup:
    from mindspeed_ms.comm.process_group import create

    return create(options, backend_options)


def is_ours(backend: str) -> bool:
    """Whether a backend string ("nccl", "cpu:gloo,cuda:nccl", ...) names only backends that map to ours."""
    names = [part.rpartition(":")[2].strip() for part in str(backend).lower().split(",")]
    return all(name in ALIASES for name in names)


def install() -> None:
    """Makes ``nccl``, ``hccl``, ``gloo``, ``"cpu:gloo,cuda:nccl"`` and no name at all mean this backend.
    Idempotent.

    Groups made before keep theirs. ``MPI`` and ``fake`` stay what they are.
    """
    register()
    if _originals:
        return
    launch.adopt_msrun_environment()
    if "HCCL" not in dist.Backend._plugins:
        dist.Backend.register_backend("hccl", _create, extended_api=True, devices=["npu", "cuda"])
    _originals["default_pg_nccl_timeout"] = c10d.default_pg_nccl_timeout
    if c10d.default_pg_nccl_timeout is None:
        c10d.default_pg_nccl_timeout = NCCL_TIMEOUT
    _wrap("_new_process_group_helper", _new_process_group_helper)
    _wrap("init_process_group", _init_process_group)
    _wrap("monitored_barrier", _monitored_barrier)


def uninstall() -> None:
    """Takes :func:`install` back; groups that exist keep working."""
    for name, original in _originals.items():
        for module in (c10d, dist):
            if hasattr(module, name):
                setattr(module, name, original)
    _originals.clear()


def _wrap(name: str, around: Callable[..., Any]) -> None:
    original = getattr(c10d, name)
    _originals[name] = original
    replacement = wrapt.FunctionWrapper(original, around)
    for module in (c10d, dist):
        if getattr(module, name, None) is original:
            setattr(module, name, replacement)


def _new_process_group_helper(wrapped: Any, instance: Any, args: tuple, kwargs: dict) -> Any:
    # Positions: group_size, group_rank, global_ranks_in_group, backend, ...
    asked = args[3] if len(args) > 3 else kwargs["backend"]
    if not is_ours(asked):
        return wrapped(*args, **kwargs)
    if len(args) > 3:
        args = (*args[:3], BACKEND, *args[4:])
    else:
        kwargs = {**kwargs, "backend": BACKEND}
    group, store = wrapped(*args, **kwargs)
    world = c10d._world
    if group in world.pg_map and str(asked) != "undefined":
        world.pg_map[group] = (dist.Backend(str(asked)), world.pg_map[group][1])
        world.pg_backend_config[group] = str(c10d.BackendConfig(dist.Backend(str(asked))))
    return group, store


def _init_process_group(wrapped: Any, instance: Any, args: tuple, kwargs: dict) -> Any:
    device = kwargs.get("device_id")
    accelerator = torch.accelerator.current_accelerator()
    if isinstance(device, torch.device) and (accelerator is None or accelerator.type != device.type):
        # Groups of this backend serve every device: binding one would only trip torch's check of its type.
        kwargs = {**kwargs, "device_id": None}
    result = wrapped(*args, **kwargs)
    _start_device_communication()
    return result


def _start_device_communication() -> None:
    """Where npu tensors travel through MindSpore: starts its communication, now that every rank is here."""
    from mindspeed_ms.comm import groups, topology
    from mindspeed_ms.comm.process_group import ProcessGroupMindSpore

    if topology.through_mindspore() and isinstance(c10d._get_default_group(), ProcessGroupMindSpore):
        groups.start_with_default_group()


def _monitored_barrier(wrapped: Any, instance: Any, args: tuple, kwargs: dict) -> None:
    _monitored(wrapped, *args, **kwargs)


def _monitored(wrapped: Any, group: Any = None, timeout: Any = None, wait_all_ranks: bool = False) -> None:
    from mindspeed_ms.comm.process_group import ProcessGroupMindSpore

    target = group if group is not None else c10d._get_default_group()
    if not isinstance(target, ProcessGroupMindSpore):
        wrapped(group, timeout, wait_all_ranks)
        return
    target.monitored_barrier(
        timedelta(seconds=timeout) if isinstance(timeout, float) else timeout, wait_all_ranks
    )
