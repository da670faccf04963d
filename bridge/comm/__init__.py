"""``torch.distributed`` backend ``mindspore``: collectives of npu and CPU tensors among the ranks of a job.

:func:`register` adds its name; ``patches/torch/distributed.py`` makes scripts written for NCCL use it
unchanged. Importing this package loads neither torch.distributed's
optional parts nor the native engine: both come with the first process group.
"""

from __future__ import annotations

from mindspeed_ms.comm.groups import MindSporeGroup, mindspore_group
from mindspeed_ms.comm.names import register

__all__ = ["MindSporeGroup", "mindspore_group", "register"]
