"""The fp8 bookkeeping that each Transformer Engine module keeps, for modules that never compute in fp8."""

from __future__ import annotations

import io
import logging
import pickle
from typing import Any, ClassVar

import torch

logger = logging.getLogger(__name__)


class _Values(pickle.Unpickler):
    """Reads plain values only: what else a checkpoint says is not executed."""

    def find_class(self, module: str, name: str) -> Any:
        """Raises UnpicklingError."""
        raise pickle.UnpicklingError(f"{module}.{name} is no plain value")


def holds_scaling_factors(state: torch.Tensor | io.BytesIO | None) -> bool:
    """Whether an ``_extra_state``, as any release of Transformer Engine writes it, tells anything.

    Without fp8 that is a file of torch.save with None (1.x), a uint8 tensor with the pickle of None or of an
    empty dictionary (2.0 to 2.3) or an empty one (from 2.4 on), or nothing, where a module had none yet.
    """
    if state is None:
        return False
    try:
        if isinstance(state, io.BytesIO):
            state.seek(0)
            return bool(torch.load(state, map_location="cpu", weights_only=True))
        data = state.cpu().numpy().tobytes()
        return bool(data and _Values(io.BytesIO(data)).load())
    except pickle.UnpicklingError:  # an fp8 recipe is an object
        return True


class WithoutFp8(torch.nn.Module):
    """Base of the modules: saves the ``_extra_state`` that Transformer Engine 2.2 saves without fp8.

    Every release reads it; the empty tensor, which newer ones write, is an error up to 2.3.
    """

    fp8 = False
    fp8_calibration = False
    without_fp8: ClassVar[dict[str, Any] | None] = None
    """What is pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.fp8_meta: dict[str, Any] = {"fp8_checkpoint": False}

    def init_fp8_metadata(self, num_gemms: int = 1) -> None:
        """Nothing: Megatron calls it before it loads the scaling factors of a grouped layer."""

    def get_extra_state(self) -> torch.Tensor:
        """uint8 tensor on the CPU: no scaling factors."""
        return torch.frombuffer(bytearray(pickle.dumps(self.without_fp8)), dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor | io.BytesIO | None) -> None:
        """Take what a checkpoint holds; scaling factors of an fp8 run are dropped with a log line."""
        if holds_scaling_factors(state):
            logger.warning(
                "fp8 scaling factors of the checkpoint are not used: %s has none", type(self).__name__
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Norms have an extra state since 2.0, attention since 1.8: an older checkpoint is complete without.
        state_dict.setdefault(f"{prefix}_extra_state", None)
        super()._load_from_state_dict(state_dict, prefix, *args)
