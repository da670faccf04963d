"""When an adapter may take Megatron's place: the one rule that all of them share."""

from __future__ import annotations

import torch


def takes(*tensors: torch.Tensor | None) -> bool:
    """Whether our kernels compute on these tensors.

    They do for npu tensors of a dtype that the kernels have, in host memory or on Ascend. Not on route host,
    whose numbers are plain torch's: there Megatron's own composite runs, operator by operator.
    """
    from mindspeed_ms.kernels import implementation
    from mindspeed_ms.ops import routes

    given = [tensor for tensor in tensors if tensor is not None]
    return (
        all(tensor.device.type == "npu" for tensor in given)
        and implementation(*given) != "composite"
        and routes.current_route() != "host"
    )
