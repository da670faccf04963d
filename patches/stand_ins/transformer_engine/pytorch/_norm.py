"""``te.pytorch.LayerNorm`` and ``te.pytorch.RMSNorm`` on our kernels."""

from __future__ import annotations

from typing import ClassVar

import torch
from mindspeed_ms.kernels.norm import layer_norm, norm_composite, rms_norm
from mindspeed_ms.routes import takes

from ._extra_state import WithoutFp8

KINDS = {"LayerNorm": layer_norm, "RMSNorm": rms_norm}


def normalise(
    normalization: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    zero_centered_gamma: bool,
) -> torch.Tensor:
    """``x (..., hidden)`` normalised over its last dimension, in its dtype: by the kernel where it may."""
    center = normalization == "LayerNorm"
    if not takes(x, weight, bias):
        return norm_composite(x, weight, bias, eps, zero_centered_gamma, None, center)
    parameters = (weight, bias) if center else (weight,)
    return KINDS[normalization](x, *parameters, eps=eps, zero_centered=zero_centered_gamma)


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
    for name in ("weight", "bias") if normalization == "LayerNorm" else ("weight",):
        module.register_parameter(
            prefix + name, torch.nn.Parameter(torch.empty(hidden, dtype=dtype, device=device))
        )
    reset_norm_parameters(module, prefix, zero_centered_gamma, sequence_parallel)


def reset_norm_parameters(
    module: torch.nn.Module, prefix: str, zero_centered_gamma: bool, sequence_parallel: bool
) -> None:
    """Initial values and Megatron's mark of what :func:`norm_parameters` registered."""
    values = {"weight": 0.0 if zero_centered_gamma else 1.0, "bias": 0.0}
    for name, value in values.items():
        parameter = getattr(module, prefix + name, None)
        if parameter is not None:
            parameter.sequence_parallel = sequence_parallel
            torch.nn.init.constant_(parameter, value)


class _Norm(WithoutFp8):
    normalization = ""
    without_fp8: ClassVar = {}  # its norms are Transformer Engine's operations, whose state is a dictionary

    def __init__(
        self,
        normalized_shape: int | None = None,
        eps: float = 1e-5,
        sequence_parallel: bool = False,
        params_dtype: torch.dtype | None = None,
        zero_centered_gamma: bool = False,
        hidden_size: int | None = None,
        device: object = "cuda",
    ) -> None:
        """``normalized_shape``: channels, which Megatron before 0.17 calls ``hidden_size``."""
        super().__init__()
        channels = normalized_shape if hidden_size is None else hidden_size
        if channels is None:
            raise TypeError(f"{type(self).__name__} needs normalized_shape, the number of channels")
        self.eps, self.zero_centered_gamma = eps, zero_centered_gamma
        self.sequence_parallel = sequence_parallel
        shared = (params_dtype, device, zero_centered_gamma, sequence_parallel)
        norm_parameters(self, "", self.normalization, channels, *shared)

    def reset_parameters(self) -> None:
        """Initial values: Megatron asks for them after it moved the module off device meta."""
        reset_norm_parameters(self, "", self.zero_centered_gamma, self.sequence_parallel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised over the last dimension; x ``(..., hidden)`` and the result have one dtype."""
        bias = getattr(self, "bias", None)
        return normalise(self.normalization, x, self.weight, bias, self.eps, self.zero_centered_gamma)


class LayerNorm(_Norm):
    """Layer normalisation with parameters ``weight`` and ``bias``."""

    normalization = "LayerNorm"


class RMSNorm(_Norm):
    """Root-mean-square normalisation with parameter ``weight``."""

    normalization = "RMSNorm"
