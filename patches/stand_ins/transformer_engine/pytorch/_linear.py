"""``te.pytorch.Linear``, ``LayerNormLinear`` and ``GroupedLinear`` on Megatron's tensor-parallel linear."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from mindspeed_ms.kernels import grouped_matmul
from mindspeed_ms.patches.megatron.tensor_parallel import row_parallel_product
from mindspeed_ms.routes import takes

from ._extra_state import WithoutFp8
from ._grouped import AccumulatingProduct, has_sums
from ._norm import norm_parameters, normalise, reset_norm_parameters

SHARDED_DIMENSION = {"column": 0, "row": 1}


def _call(function: Callable[..., Any], *args: Any, **optional: Any) -> Any:
    """Call with those of ``optional`` that this Megatron release knows (groups became arguments in 0.13)."""
    known = inspect.signature(function).parameters
    return function(*args, **{k: v for k, v in optional.items() if k in known})


class _Parallel(WithoutFp8):
    """What the three share: sizes, weights and their initialisation, one tensor-parallel product."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        return_bias: bool = False,
        parallel_mode: str | None = None,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        get_rng_state_tracker: Callable[[], Any] | None = None,
        rng_tracker_name: str | None = None,
        init_method: Callable[[torch.Tensor], Any] | None = None,
        params_dtype: torch.dtype | None = None,
        device: Any = "cuda",
        **unsupported: Any,
    ) -> None:
        super().__init__()
        asked = sorted(name for name, value in unsupported.items() if value not in (None, False))
        if "ub_overlap_ag" in asked or "ub_overlap_rs" in asked:
            raise ValueError(
                "tensor-parallel communication overlap needs Transformer Engine's userbuffers, which exist "
                "on CUDA only: drop --tp-comm-overlap"
            )
        if [name for name in asked if name != "ub_name"]:
            raise TypeError(f"{type(self).__name__} does not implement {', '.join(asked)}")
        if parallel_mode == "column":
            out_features //= tp_size
        elif parallel_mode == "row":
            in_features //= tp_size
        self.in_features, self.out_features = in_features, out_features
        self.use_bias, self.return_bias = bias, return_bias
        self.parallel_mode, self.tp_size, self.tp_group = parallel_mode, tp_size, tp_group
        self.sequence_parallel = sequence_parallel and tp_size > 1
        self.fuse_wgrad_accumulation = fuse_wgrad_accumulation
        self._tracker, self._stream = get_rng_state_tracker, rng_tracker_name
        self._init_method = init_method or (lambda w: torch.nn.init.normal_(w, mean=0.0, std=0.023))
        self._where = {"dtype": params_dtype, "device": device}
        self._suffixes: list[str] = []

    def _fork(self) -> Any:
        if self._tracker is None:
            return nullcontext()
        return self._tracker().fork(*([self._stream] if self._stream else []))

    def _new_parameters(self, suffix: str = "") -> None:
        """Register ``weight<suffix> (out, in)`` and ``bias<suffix> (out,)``, with their initial values."""
        weight = torch.nn.Parameter(torch.empty(self.out_features, self.in_features, **self._where))
        self.register_parameter(f"weight{suffix}", weight)
        if self.use_bias:
            bias = torch.nn.Parameter(torch.empty(self.out_features, **self._where))
            self.register_parameter(f"bias{suffix}", bias)
        else:
            # an attribute all the same, like Transformer Engine's; no parameter, so in no checkpoint
            setattr(self, f"bias{suffix}", None)
        self._suffixes.append(suffix)
        self._initialise(suffix)

    def _initialise(self, suffix: str) -> None:
        """Values of the parameters, marked as Megatron marks its own; on device meta only the marks."""
        weight, bias = getattr(self, f"weight{suffix}"), getattr(self, f"bias{suffix}")
        if not weight.is_meta:
            with self._fork(), torch.no_grad():
                self._init_method(weight)
        dimension = SHARDED_DIMENSION.get(self.parallel_mode)
        if dimension is not None:
            _mark(weight, dimension)
        if bias is None:
            return
        torch.nn.init.zeros_(bias)
        if self.parallel_mode == "column":
            _mark(bias, 0)
        elif self.parallel_mode == "row":
            bias.sequence_parallel = self.sequence_parallel

    def reset_parameters(self) -> None:
        """Initial values: Megatron asks for them after it moved the module off device meta."""
        for suffix in self._suffixes:
            self._initialise(suffix)

    def _product(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x ``(..., in)`` @ weight^T + bias, with the communication that ``parallel_mode`` asks for."""
        from megatron.core.tensor_parallel import layers, mappings

        column = self.parallel_mode == "column" and self.tp_size > 1
        row = self.parallel_mode == "row" and self.tp_size > 1
        if row and self.sequence_parallel:
            out = row_parallel_product(x, weight, self.tp_group, self.fuse_wgrad_accumulation)
            if out is not None:
                return out if bias is None else out + bias
        matmul = (
            layers.linear_with_grad_accumulation_and_async_allreduce
            if weight.requires_grad
            else layers.linear_with_frozen_weight
        )
        out = _call(
            matmul,
            x,
            weight,
            None if row else bias,
            gradient_accumulation_fusion=self.fuse_wgrad_accumulation,
            allreduce_dgrad=column and not self.sequence_parallel,
            async_grad_allreduce=None,
            sequence_parallel=column and self.sequence_parallel,
            grad_output_buffer=None,
            wgrad_deferral_limit=0 if weight.requires_grad else None,
            tp_group=self.tp_group,
        )
        if not row:
            return out
        if self.sequence_parallel:
            reduce = mappings.reduce_scatter_to_sequence_parallel_region
        else:
            reduce = mappings.reduce_from_tensor_model_parallel_region
        out = _call(reduce, out, group=self.tp_group)
        return out if bias is None else out + bias


def _mark(parameter: torch.nn.Parameter, dimension: int) -> None:
    from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes

    if not hasattr(parameter, "tensor_model_parallel"):  # Megatron forbids to mark twice
        set_tensor_model_parallel_attributes(parameter, True, dimension, 1)


class Linear(_Parallel):
    """Linear layer with parameters ``weight`` and ``bias``."""

    def __init__(self, in_features: int, out_features: int, **options: Any) -> None:
        super().__init__(in_features, out_features, **options)
        self._new_parameters()

    def forward(self, x: torch.Tensor, is_first_microbatch: bool | None = None) -> Any:
        """x ``(..., in)`` -> ``(..., out)``; with ``return_bias`` the pair of the product and the bias."""
        out = self._product(x, self.weight, None if self.return_bias else self.bias)
        return (out, self.bias) if self.return_bias else out


class LayerNormLinear(_Parallel):
    """Norm and linear layer: ``layer_norm_weight``, ``layer_norm_bias`` (LayerNorm), ``weight``, ``bias``."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        eps: float = 1e-5,
        *,
        normalization: str = "LayerNorm",
        zero_centered_gamma: bool = False,
        return_layernorm_output: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, **options)
        if return_layernorm_output:
            raise TypeError("LayerNormLinear does not implement return_layernorm_output")
        self.eps, self.normalization, self.zero_centered_gamma = eps, normalization, zero_centered_gamma
        where = (self._where["dtype"], self._where["device"])
        norm_parameters(
            self,
            "layer_norm_",
            normalization,
            in_features,
            *where,
            zero_centered_gamma,
            self.sequence_parallel,
        )
        self._new_parameters()

    def reset_parameters(self) -> None:
        """Initial values, of the norm too."""
        reset_norm_parameters(self, "layer_norm_", self.zero_centered_gamma, self.sequence_parallel)
        super().reset_parameters()

    def forward(self, x: torch.Tensor, is_first_microbatch: bool | None = None) -> Any:
        """x ``(..., in)`` -> ``(..., out)``; with ``return_bias`` the pair of the product and the bias."""
        bias = self.layer_norm_bias if self.normalization == "LayerNorm" else None
        weight, centered = self.layer_norm_weight, self.zero_centered_gamma
        x = normalise(self.normalization, x, weight, bias, self.eps, centered)
        out = self._product(x, self.weight, None if self.return_bias else self.bias)
        return (out, self.bias) if self.return_bias else out


class GroupedLinear(_Parallel):
    """One linear layer per expert: ``weight0``.. and ``bias0``.., the rows of x sorted by expert."""

    def __init__(self, num_gemms: int, in_features: int, out_features: int, **options: Any) -> None:
        super().__init__(in_features, out_features, **options)
        self.num_gemms = num_gemms
        for index in range(num_gemms):
            self._new_parameters(str(index))

    def forward(
        self, x: torch.Tensor, m_splits: Sequence[int], is_first_microbatch: bool | None = None
    ) -> Any:
        """x ``(rows, in)`` -> ``(rows, out)``: ``m_splits[i]`` rows, in order, go through layer i.

        With ``return_bias`` the pair of the product and the list of biases. Raises ValueError for a wrong
        number of splits.
        """
        if len(m_splits) != self.num_gemms:
            raise ValueError(
                f"GroupedLinear has {self.num_gemms} layers and was given {len(m_splits)} splits"
            )
        weights = [getattr(self, f"weight{i}") for i in range(self.num_gemms)]
        biases = [getattr(self, f"bias{i}") for i in range(self.num_gemms)]
        fused = self.fuse_wgrad_accumulation
        alone = self.tp_size == 1 and (self.return_bias or not self.use_bias)
        if alone and takes(x, *weights) and (not fused or has_sums(weights)):
            splits = list(m_splits)
            out = (
                AccumulatingProduct.apply(x, splits, *weights)
                if fused
                else grouped_matmul(x, weights, splits, turned=True)
            )
            return (out, biases) if self.return_bias else out
        # An expert without rows takes part all the same: its weight gets a gradient of zeros.
        out = torch.cat(
            [
                self._product(rows, weight, None if self.return_bias else bias)
                for rows, weight, bias in zip(torch.split(x, list(m_splits)), weights, biases, strict=True)
            ]
        )
        return (out, biases) if self.return_bias else out
