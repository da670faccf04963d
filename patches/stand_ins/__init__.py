"""Packages that Megatron imports and a machine without CUDA lacks: these tables say which, and why.

``PROVIDED`` are folders and files beside this one, laid out and named like the packages that they stand for:
names and arguments are theirs, the computation is in ``mindspeed_ms.kernels`` (:mod:`.providing`). ``LENT``
are empty shells for one module each (:mod:`.lending`).
"""

from __future__ import annotations

import sys

from mindspeed_ms.patches.stand_ins.lending import Lender, Lent
from mindspeed_ms.patches.stand_ins.providing import Provided, Provider

_MAMBA = "Megatron's Mamba layers refuse to be built without it"

PROVIDED = (
    Provided("causal_conv1d", _MAMBA),
    Provided("emerging_optimizers", "--optimizer muon is refused without it"),
    Provided("flash_attn", "dynamic batching and --flash-decode are refused without its two functions"),
    Provided(
        "fused_weight_gradient_mlp_cuda",
        "gradient_accumulation_fusion, on by default, refuses to start without this extension of Apex",
    ),
    Provided("grouped_gemm", "the grouped experts of the local layer spec refuse to be built without it"),
    Provided("mamba_ssm", _MAMBA),
    Provided(
        "transformer_engine",
        "Megatron's default layer spec is made of its modules; ours have its parameter names",
        version="2.2.0",
    ),
)

_TRITON = ("triton", "triton.language")
_KERNELS = "it defines triton kernels that training does not launch"

LENT = (
    Lent(_TRITON, "megatron.core.transformer.custom_layers.batch_invariant_kernels", _KERNELS),
    Lent(_TRITON, "megatron.core.inference.contexts.attention_context.triton.tensor_ops", _KERNELS),
    Lent(_TRITON, "megatron.core.transformer.moe.paged_stash", _KERNELS),  # 0.18
    Lent(_TRITON, "megatron.core.transformer.moe.ops.paged_stash", _KERNELS),  # 0.19
)

_lender, _provider = Lender(LENT), Provider(PROVIDED)


def table() -> str:
    """Plain text: a line for each shell and each provided package."""
    lines = [f"{s.packages[0]} is lent to {s.borrower}: {s.reason}" for s in LENT]
    lines += [f"{p.name} is provided: {p.reason}" for p in PROVIDED]
    return "\n".join(lines)


def arm() -> None:
    """Start lending and providing; calling it again changes nothing."""
    if _lender not in sys.meta_path:
        sys.meta_path.insert(0, _lender)
        sys.meta_path.append(_provider)


def disarm() -> None:
    """Stop, for imports from now on."""
    if _lender in sys.meta_path:
        sys.meta_path.remove(_lender)
        sys.meta_path.remove(_provider)
    _provider.forget()
