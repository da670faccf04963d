"""The part of NVIDIA's ``emerging_optimizers`` that Megatron's Muon is built on, by our Newton-Schulz kernel.

The package of that time (with ``momentum_beta`` and ``use_nesterov``) was on GitHub only; the releases on
PyPI have other names, which Megatron-Core 0.16 does not know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

#: Name -> the coefficients of the steps in turn (github.com/KellerJordan/modded-nanogpt).
COEFFICIENTS = {
    "simple": ((3.4445, -4.7750, 2.0315),),
    "quintic": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
}
EPSILON = 1e-15

SCALES: dict[str, Callable[[int, int], float]] = {
    "shape_scaling": lambda size_out, size_in: max(1.0, size_out / size_in) ** 0.5,
    "spectral": lambda size_out, size_in: max(size_out, size_in) ** 0.5,
    "unit_rms_norm": lambda size_out, size_in: (size_out / size_in) ** 0.5,
}


def get_muon_scale_factor(size_out: int, size_in: int, mode: str = "spectral") -> float:
    """What an orthogonal update of ``[size_out, size_in]`` is multiplied by; ValueError for another mode."""
    if mode not in SCALES:
        raise ValueError(f"--muon-scale-mode {mode!r} is none of {', '.join(SCALES)}")
    return SCALES[mode](size_out, size_in)


def newton_schulz_tp(
    x: torch.Tensor,
    steps: int,
    coefficient_type: str,
    tp_group: dist.ProcessGroup | None,
    partition_dim: int | None = None,
    mode: str = "duplicated",
) -> torch.Tensor:
    """The orthogonalised ``x [rows, cols]``, float32, of which ranks hold parts along ``partition_dim``.

    "duplicated": every rank gathers and orthogonalises the whole; "distributed": each multiplies its part,
    sums go over the ranks. In bfloat16 where torch's float32 matmul precision is "medium". ValueError for
    other names.
    """
    from mindspeed_ms.kernels import newton_schulz

    if coefficient_type not in COEFFICIENTS or mode not in ("duplicated", "distributed"):
        raise ValueError(f"newton_schulz_tp: unknown coefficients {coefficient_type!r} or mode {mode!r}")
    low = torch.get_float32_matmul_precision() == "medium"
    options: dict[str, Any] = {"eps": EPSILON, "dtype": torch.bfloat16 if low else torch.float32}
    arguments = (steps, COEFFICIENTS[coefficient_type])
    if partition_dim is None:
        return newton_schulz(x, *arguments, **options)
    if mode == "distributed":
        return newton_schulz(x, *arguments, split=(partition_dim, tp_group), **options)
    parts = [torch.empty_like(x) for _ in range(tp_group.size())]
    dist.all_gather(parts, x.contiguous(), tp_group)
    whole = newton_schulz(torch.cat(parts, dim=partition_dim), *arguments, **options)
    return whole.chunk(tp_group.size(), dim=partition_dim)[tp_group.rank()]


class OrthogonalizedOptimizer(torch.optim.Optimizer):
    """Momentum, orthogonalised: ``p -= lr * scaled_orthogonalize_fn(momentum)``, one matrix at a time."""

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum_beta: float,
        weight_decay: float,
        *,
        use_nesterov: bool,
        weight_decay_method: str,
        fp32_matmul_prec: str,
        scaled_orthogonalize_fn: Callable[..., torch.Tensor] | None = None,
        **options: Any,
    ) -> None:
        if weight_decay_method not in ("decoupled", "l2"):
            raise ValueError(f"weight decay {weight_decay_method!r} is not implemented: use decoupled or l2")
        super().__init__(
            params, {"lr": lr, "momentum_beta": momentum_beta, "weight_decay": weight_decay, **options}
        )
        self.use_nesterov, self.weight_decay_method = use_nesterov, weight_decay_method
        self.fp32_matmul_prec = fp32_matmul_prec
        self.scaled_orthogonalize_fn = scaled_orthogonalize_fn or torch.nn.Identity()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; ``closure`` is called first and its value returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.fp32_matmul_prec)
        try:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._update(parameter, group)
        finally:
            torch.set_float32_matmul_precision(before)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        grad, state = parameter.grad, self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        momentum, beta = state["momentum_buffer"], group["momentum_beta"]
        if self.weight_decay_method == "l2":
            grad = grad.add(parameter, alpha=group["weight_decay"])
        else:
            parameter.mul_(1.0 - group["weight_decay"] * group["lr"])
        momentum.lerp_(grad, 1.0 - beta)
        update = grad.lerp(momentum, beta) if self.use_nesterov else momentum
        settings = {name: value for name, value in group.items() if name != "params"}
        parameter.add_(self.orthogonalize(parameter, update, **settings), alpha=-group["lr"])

    def orthogonalize(self, p: torch.Tensor, grad: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """The update of parameter ``p``; Megatron's subclass splits fused parameters here."""
        if grad.dim() != 2:
            raise ValueError(f"only matrices can be orthogonalised, got {tuple(grad.shape)}")
        return self.scaled_orthogonalize_fn(grad)
