"""The fp8 bookkeeping that each Transformer Engine module keeps, for modules that never compute in fp8."""

from __future__ import annotations

import logging
from typing import Any

import torch

logger = logging.getLogger(__name__)


class WithoutFp8(torch.nn.Module):
    """Base of the parametrised modules: saves an empty ``_extra_state``, as Transformer Engine then does."""

    fp8 = False
    fp8_calibration = False

    def __init__(self) -> None:
        super().__init__()
        self.fp8_meta: dict[str, Any] = {"fp8_checkpoint": False}

    def init_fp8_metadata(self, num_gemms: int = 1) -> None:
        """Nothing: Megatron calls it before it loads the scaling factors of a grouped layer."""

    def get_extra_state(self) -> torch.Tensor:
        """Empty uint8 tensor: no scaling factors."""
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor | None) -> None:
        """Take what a checkpoint holds; scaling factors of an fp8 run are dropped with a log line."""
        if isinstance(state, torch.Tensor) and state.numel():
            logger.warning(
                "fp8 scaling factors of the checkpoint are not used: %s has none", type(self).__name__
            )
