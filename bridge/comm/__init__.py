"""``torch.distributed`` backend ``mindspore``: collectives of npu and CPU tensors among the ranks of a job.

:func:`install` (called by ``import mindspeed_ms.patch``) makes scripts written for NCCL use it unchanged;
:func:`register` only adds the name ``mindspore``. Importing this package loads neither torch.distributed's
optional parts nor the native engine: both come with the first process group.
"""

from __future__ import annotations

from mindspeed_ms.comm.groups import MindSporeGroup, mindspore_group
from mindspeed_ms.comm.names import install, register, uninstall

__all__ = ["MindSporeGroup", "install", "mindspore_group", "register", "uninstall"]
