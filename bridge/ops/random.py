"""Random numbers where the memory is the device's: MindSpore's operators, given seed and offset of torch's
generator.

The same seed and offset give the same numbers, on any rank and after a checkpoint. On the CPU target torch's
own CPU engine draws (csrc/runtime/generator.h).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from mindspeed_ms import _runtime
from mindspeed_ms.device.mindspore import number
from mindspeed_ms.routes import counted

Tensor = torch.Tensor
Generator = torch.Generator | None

STEP = 12
"""Numbers of Philox that one call may take for an element, as MindSpore's own generator reckons."""

_library: torch.library.Library | None = None


def register() -> None:
    """Makes these functions the npu kernels of their aten operators. Once per process."""
    global _library
    _library = torch.library.Library("aten", "IMPL")
    for name, kernel in KERNELS.items():
        _library.impl(name, kernel, "PrivateUse1")


def _draw(name: str, out: Tensor, generator: Generator, operator: Callable[..., Any], *args: Any) -> Tensor:
    """Has `operator` write random numbers into `out`: (ms.Tensor, *args, seed, offset)."""
    if out.numel() == 0:
        return out
    state = [_signed(value) for value in _runtime.draw_philox(generator, out.device.index, STEP)]
    with counted(f"aten::{name}", out, "mindspore"):
        lent = [_runtime.to_mindspore(a) if isinstance(a, Tensor) else a for a in args]
        operator(_runtime.to_mindspore(out), *lent, *map(number, state))
    return out


def _signed(value: int) -> int:
    """The int64 of the same bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _operators() -> Any:
    from mindspore.ops.auto_generate import gen_ops_prim

    return gen_ops_prim


def uniform_(self: Tensor, low: float = 0.0, high: float = 1.0, *, generator: Generator = None) -> Tensor:
    if low > high:
        raise RuntimeError(f"uniform_ expects to return a [from, to) range, but found from={low} > to={high}")
    return _draw("uniform_", self, generator, _operators().inplace_uniform_op, float(low), float(high))


def normal_(self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Generator = None) -> Tensor:
    if std < 0:
        raise RuntimeError(f"normal expects std >= 0.0, but found std {std}")
    if self.is_complex():
        normal_(torch.view_as_real(self), 0.0, std / math.sqrt(2.0), generator=generator)
        return self.add_(mean) if mean else self
    return _draw("normal_", self, generator, _operators().inplace_normal_op, float(mean), float(std))


def bernoulli_(self: Tensor, p: float = 0.5, *, generator: Generator = None) -> Tensor:
    if not 0.0 <= p <= 1.0:
        raise RuntimeError(f"bernoulli_ expects p to be in [0, 1], but got p={p}")
    return _draw("bernoulli_.float", self, generator, _operators().inplace_bernoulli_scalar_op, float(p))


def bernoulli_tensor_(self: Tensor, p: Tensor, *, generator: Generator = None) -> Tensor:
    p = p.to(self.device, torch.float32).expand(self.shape)
    return _draw("bernoulli_.Tensor", self, generator, _operators().inplace_bernoulli_tensor_op, p)


def random_range_(self: Tensor, low: int, high: int | None = None, *, generator: Generator = None) -> Tensor:
    if high is None:
        high = _largest(self.dtype)
    if low >= high:
        raise RuntimeError(f"random_ expects 'from' to be less than 'to', but got from={low} >= to={high}")
    return _draw("random_", self, generator, _operators().inplace_random_op, int(low), int(high))


def random_to_(self: Tensor, high: int, *, generator: Generator = None) -> Tensor:
    return random_range_(self, 0, high, generator=generator)


def random_(self: Tensor, *, generator: Generator = None) -> Tensor:
    return random_range_(self, 0, None, generator=generator)


def _largest(dtype: torch.dtype) -> int:
    """One more than the largest number that random_() draws."""
    if dtype == torch.bool:
        return 2
    if dtype.is_floating_point:  # all integers up to here have their own value
        return round(2 / torch.finfo(dtype).eps) + 1
    return min(torch.iinfo(dtype).max + 1, 2**63 - 1)


def exponential_(self: Tensor, rate: float = 1.0, *, generator: Generator = None) -> Tensor:
    if rate <= 0.0:
        raise RuntimeError(f"exponential_ expects lambda > 0.0, but found lambda={rate}")
    # 1 - u is in (0, 1], so the logarithm is finite.
    return uniform_(self, generator=generator).neg_().log1p_().mul_(-1.0 / rate)


def randperm(n: int, *, generator: Generator = None, out: Tensor) -> Tensor:
    if n < 0:
        raise RuntimeError(f"n must be non-negative, got{n}")
    out.resize_(n)
    keys = torch.empty(n, dtype=torch.float32, device=out.device)
    # Two keys are equal once in 2**24; the sort being stable, the order is one of the permutations even then.
    return out.copy_(uniform_(keys, generator=generator).argsort(stable=True))


def multinomial(
    self: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator = None
) -> Tensor:
    def operator(out: Any, weights: Any, seed: Any, offset: Any) -> None:
        out.copy_(_operators().multinomial_ext_op(weights, num_samples, replacement, seed, offset))

    if num_samples <= 0:
        raise RuntimeError("cannot sample n_sample <= 0 samples")
    out = torch.empty((*self.shape[:-1], num_samples), dtype=torch.int64, device=self.device)
    return _draw("multinomial", out, generator, operator, self)


KERNELS: dict[str, Callable[..., Tensor]] = {
    "uniform_": uniform_,
    "normal_": normal_,
    "bernoulli_.float": bernoulli_,
    "bernoulli_.Tensor": bernoulli_tensor_,
    "random_": random_,
    "random_.to": random_to_,
    "random_.from": random_range_,
    "exponential_": exponential_,
    "randperm.generator_out": randperm,
    "multinomial": multinomial,
}
"""aten operator -> function with its schema."""
