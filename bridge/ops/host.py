"""What strict mode lets run on the host: operators that move data or draw random numbers and compute nothing
else.

* Copies: between devices, into a view, out of one. torch owns storages and strides, so torch moves the bytes.
* Random numbers: the npu generator's engine is torch's CPU engine, whose state is saved, restored and forked
  by torch's and Megatron's RNG functions; MindSpore's generator has none of that interface.
* Factories that write a known sequence or constant; queries that read one number.
"""

from __future__ import annotations

from mindspeed_ms import _runtime

COPIES = ("copy_", "_copy_from", "_copy_from_and_resize", "_local_scalar_dense")

RANDOM = (
    *("bernoulli.out", "bernoulli_.Tensor", "bernoulli_.float", "cauchy_", "exponential_", "geometric_"),
    *(
        "log_normal_",
        "multinomial",
        "multinomial.out",
        "normal_",
        "normal.Tensor_Tensor",
        "normal.float_Tensor",
    ),
    *("normal.Tensor_float", "poisson", "random_", "random_.from", "random_.to", "randperm.generator_out"),
    "uniform_",
)

FACTORIES = (
    *("arange.out", "arange.start_out", "eye.m_out", "eye.out", "linspace.out", "range.out"),
    *("tril_indices", "triu_indices"),
)


def allow() -> None:
    for name in (*COPIES, *RANDOM, *FACTORIES):
        _runtime.allow_on_host(f"aten::{name}")
