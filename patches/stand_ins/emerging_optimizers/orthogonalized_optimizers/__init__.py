"""``emerging_optimizers.orthogonalized_optimizers``: what Megatron's Muon is built on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mindspeed_ms.kernels.muon import SCALES, momentum_update


def get_muon_scale_factor(size_out: int, size_in: int, mode: str = "spectral") -> float:
    """What an orthogonal update of ``[size_out, size_in]`` is multiplied by; ValueError for another mode."""
    if mode not in SCALES:
        raise ValueError(f"--muon-scale-mode {mode!r} is none of {', '.join(SCALES)}")
    return SCALES[mode](size_out, size_in)


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
    def step(self, closure: Callable[[], float] | None = None) -> Any:
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
                        self._update(parameter, parameter.grad, group)
        finally:
            torch.set_float32_matmul_precision(before)
        return loss

    def _update(self, parameter: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        update = momentum_update(
            parameter,
            grad,
            state["momentum_buffer"],
            beta=group["momentum_beta"],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            decoupled=self.weight_decay_method == "decoupled",
            nesterov=self.use_nesterov,
        )
        settings = {name: value for name, value in group.items() if name != "params"}
        parameter.add_(self.orthogonalize(parameter, update, **settings), alpha=-group["lr"])

    def orthogonalize(self, p: torch.Tensor, grad: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """The update of parameter ``p``; Megatron's subclass splits fused parameters here."""
        if grad.dim() != 2:
            raise ValueError(f"only matrices can be orthogonalised, got {tuple(grad.shape)}")
        return self.scaled_orthogonalize_fn(grad)
