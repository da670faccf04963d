"""``te.pytorch.optimizers``: FusedAdam on our kernel, and torch's SGD.

Megatron's distributed optimizer cannot resume with torch's Adam: it asks for the optimizer's state before the
first step, when torch's has none. With FusedAdam it goes the way that it goes on CUDA, and a checkpoint holds
what one from there holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from mindspeed_ms.kernels import adam_step

FusedSGD = torch.optim.SGD
MOMENTS = ("exp_avg", "exp_avg_sq")


def _shard(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a DTensor (Megatron FSDP and FSDP2 have them); any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class FusedAdam(torch.optim.Optimizer):
    """AdamW (``adam_w_mode``) or Adam with L2. State of a parameter: ``exp_avg`` and ``exp_avg_sq``, in
    float32 for 16-bit parameters, too.

    The number of steps is ``step`` of each parameter group, an int; a group without parameters has none.
    Raises NotImplementedError for ``amsgrad``, for lower-precision state and for master weights.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adam_w_mode: bool = True,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        **unsupported: Any,
    ) -> None:
        usual = (None, False, torch.float32)
        asked = sorted(name for name, value in unsupported.items() if value not in usual)
        if amsgrad or asked:
            raise NotImplementedError(
                f"FusedAdam does not implement {', '.join(asked) or 'amsgrad'}: drop "
                "--use-precision-aware-optimizer, the state is then float32"
            )
        self.adam_w_mode = adam_w_mode
        defaults = {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps}
        super().__init__(params, {**defaults, "weight_decay": weight_decay})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of torch's Adam, too: its number of steps is in each parameter's state."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("bias_correction", self.defaults["bias_correction"])
            # looked up by get: an empty entry would tell Megatron that there is state already
            states = [self.state.get(p, {}) for p in group["params"]]
            steps = {float(state.pop("step")) for state in states if "step" in state}
            if steps and "step" not in group:
                group["step"] = int(max(steps))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch, but the state of 16-bit parameters is not rounded to their dtype."""
        super().load_state_dict(state_dict)
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for index, p in zip(saved, params, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if name in MOMENTS and value.dtype != p.dtype:
                    self.state[p][name] = value.to(p.device, copy=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, **_options: Any) -> Any:
        """One update of every parameter that has a gradient; returns what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = group.get("step", 0) + 1
            for p in group["params"]:
                # As in Transformer Engine, without a gradient too: an empty shard of Megatron FSDP has none,
                # and saving is collective, once for each tensor that some rank has.
                if "exp_avg" not in self.state[p]:
                    dtype = torch.promote_types(p.dtype, torch.float32)
                    self.state[p] |= {name: torch.zeros_like(p, dtype=dtype) for name in MOMENTS}
            params = [p for p in group["params"] if p.grad is not None and _shard(p).numel()]
            if params:
                adam_step(
                    [_shard(p.detach()) for p in params],
                    [_shard(p.grad) for p in params],
                    [_shard(self.state[p]["exp_avg"]) for p in params],
                    [_shard(self.state[p]["exp_avg_sq"]) for p in params],
                    step=int(group["step"]),
                    lr=group["lr"],
                    betas=tuple(group["betas"]),
                    eps=group["eps"],
                    weight_decay=group["weight_decay"],
                    decoupled=self.adam_w_mode,
                    bias_correction=group["bias_correction"],
                )
        return loss
