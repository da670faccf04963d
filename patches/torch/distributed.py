"""``torch.distributed``: the backend names that scripts use lead to backend ``mindspore``.

Only the functions that make groups are wrapped, never a collective. A group keeps the name that the script
gave: ``torch.distributed.get_backend()`` answers "nccl" where the script said so.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from mindspeed_ms.comm import names
from mindspeed_ms.patches.registry import around, factory

C10D = "torch.distributed.distributed_c10d"
NCCL_TIMEOUT = timedelta(minutes=10)
"""Default timeout of NCCL groups in torch."""


@around(
    "torch.distributed.device_mesh:DeviceMesh.__init__",
    reason="FSDP2 and DTensor compare the type of a mesh, cuda in CUDA scripts, with that of parameters",
)
def device_mesh(
    original: Callable[..., None], self: Any, device_type: str, *args: Any, **kwargs: Any
) -> None:
    """A mesh for cuda is one for npu."""
    original(self, "npu" if device_type == "cuda" else device_type, *args, **kwargs)


@factory(f"{C10D}:default_pg_nccl_timeout", reason="a torch without NCCL has none and warns")
def nccl_timeout(original: timedelta | None) -> timedelta:
    """The timeout that torch has with NCCL."""
    return NCCL_TIMEOUT if original is None else original


@around(f"{C10D}:_new_process_group_helper", reason="nccl, gloo and other names lead to backend mindspore")
def new_process_group_helper(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Torch's own, with our backend; the group bears the name that was asked for."""
    # Positions: group_size, group_rank, global_ranks_in_group, backend, ...
    asked = args[3] if len(args) > 3 else kwargs["backend"]
    if not names.is_ours(asked):
        return original(*args, **kwargs)
    if len(args) > 3:
        args = (*args[:3], names.BACKEND, *args[4:])
    else:
        kwargs = {**kwargs, "backend": names.BACKEND}
    group, store = original(*args, **kwargs)
    names.call_as_asked(group, str(asked))
    return group, store


@around(
    f"{C10D}:batch_isend_irecv",
    reason="torch batches for its own class of groups; on Ascend ranks that send to each other first hang",
)
def batch_isend_irecv(original: Callable[..., Any], p2p_op_list: list[Any]) -> Any:
    """Messages that travel by MindSpore's communication leave as one batch; others as torch sends them."""
    from mindspeed_ms.comm.process_group import ProcessGroupMindSpore
    from mindspeed_ms.comm.topology import through_mindspore

    c10d = torch.distributed.distributed_c10d
    c10d._check_p2p_op_list(p2p_op_list)
    group, device = p2p_op_list[0].group or c10d._get_default_group(), p2p_op_list[0].tensor.device
    if not isinstance(group, ProcessGroupMindSpore) or device.type != "npu" or not through_mindspore():
        return original(p2p_op_list)
    with c10d._coalescing_manager(group, device, async_ops=True) as manager:
        for message in p2p_op_list:
            peer = "group_dst" if message.op is c10d.isend else "group_src"
            message.op(message.tensor, group=message.group, tag=message.tag, **{peer: message.group_peer})
    return manager.works


@around(f"{C10D}:init_process_group", reason="groups of this backend serve every device, bound to none")
def init_process_group(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Torch's own; MindSpore's communication, where tensors travel through it, starts with the group."""
    device = kwargs.get("device_id")
    accelerator = torch.accelerator.current_accelerator()
    if isinstance(device, torch.device) and (accelerator is None or accelerator.type != device.type):
        # Binding a device would only trip torch's check of its type.
        kwargs = {**kwargs, "device_id": None}
    original(*args, **kwargs)
    names.start_device_communication()


@around(f"{C10D}:monitored_barrier", reason="torch's own is for groups of gloo only")
def monitored_barrier(
    original: Callable[..., None], group: Any = None, timeout: Any = None, wait_all_ranks: bool = False
) -> None:
    """Ours for our groups."""
    ours = names.our_group(group)
    if ours is None:
        original(group, timeout, wait_all_ranks)
        return
    timeout = timedelta(seconds=timeout) if isinstance(timeout, float) else timeout
    ours.monitored_barrier(timeout, wait_all_ranks)
