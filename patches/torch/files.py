"""Storages written to and read from files: pickle, ``torch.save`` in its old format, objects sent to ranks.

torch wraps the memory of a storage in a tensor to copy it to the host and back. That tensor owns nothing that
the device could know it by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mindspeed_ms.patches.registry import around

REASON = "torch's own copies through a tensor over the bare address, which the device does not know"


@around("torch.storage:UntypedStorage._write_file", reason=REASON)
def write_file(original: Callable[..., None], self: torch.UntypedStorage, *args: Any) -> None:
    """Torch's own, of a copy on the host."""
    original(self.cpu() if self.device.type == "npu" else self, *args)


@around("torch.storage:UntypedStorage._set_from_file", reason=REASON)
def set_from_file(
    original: Callable[..., Any], self: torch.UntypedStorage, *args: Any
) -> torch.UntypedStorage:
    """Torch's own into host memory, then to the device."""
    if self.device.type != "npu":
        return original(self, *args)
    host = torch.UntypedStorage(self.nbytes())
    original(host, *args)
    return self.copy_(host, False)
