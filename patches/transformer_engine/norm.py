"""``te.pytorch.LayerNorm`` and ``te.pytorch.RMSNorm`` on our kernels."""

from __future__ import annotations

import torch
from mindspeed_ms.kernels.norm import layer_norm, rms_norm

KINDS = {"LayerNorm": layer_norm, "RMSNorm": rms_norm}


def norm_parameters(
    module: torch.nn.Module,
    prefix: str,
    normalization: str,
    hidden: int,
    dtype: torch.dtype | None,
    device: object,
    zero_centered_gamma: bool,
    sequence_parallel: bool,
) -> None:
    """Give ``module`` the parameters ``<prefix>weight`` and, for LayerNorm, ``<prefix>bias``: ``(hidden,)``.

    Raises ValueError for another ``normalization`` than LayerNorm or RMSNorm.
    """
    if normalization not in KINDS:
        raise ValueError(f"normalization {normalization!r} is neither of {', '.join(KINDS)}")
    weight = torch.full((hidden,), 0.0 if zero_centered_gamma else 1.0, dtype=dtype, device=device)
    values = {"weight": weight}
    if normalization == "LayerNorm":
        values["bias"] = torch.zeros(hidden, dtype=dtype, device=device)
    for name, value in values.items():
        parameter = torch.nn.Parameter(value)
        parameter.sequence_parallel = sequence_parallel
        module.register_parameter(prefix + name, parameter)


class _Norm(torch.nn.Module):
    normalization = ""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        sequence_parallel: bool = False,
        params_dtype: torch.dtype | None = None,
        zero_centered_gamma: bool = False,
        device: object = "cuda",
    ) -> None:
        super().__init__()
        self.eps, self.zero_centered_gamma = eps, zero_centered_gamma
        self.sequence_parallel = sequence_parallel
        shared = (params_dtype, device, zero_centered_gamma, sequence_parallel)
        norm_parameters(self, "", self.normalization, hidden_size, *shared)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised over the last dimension; x ``(..., hidden)`` and the result have one dtype."""
        parameters = dict(self.named_parameters(recurse=False))
        return KINDS[self.normalization](
            x, **parameters, eps=self.eps, zero_centered=self.zero_centered_gamma
        )


class LayerNorm(_Norm):
    """Layer normalisation with parameters ``weight`` and ``bias``."""

    normalization = "LayerNorm"


class RMSNorm(_Norm):
    """Root-mean-square normalisation with parameter ``weight``."""

    normalization = "RMSNorm"
