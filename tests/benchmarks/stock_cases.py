"""The runs of stock_scripts.py: model, flags, processes, start, and what the losses are held against."""

from __future__ import annotations

from dataclasses import dataclass

ITERATIONS = 22
SAVED = 2
"""The reference of a model trains ITERATIONS and saves after SAVED: 20 remain for a run that loads it."""
RESHARDABLE = ("--use-distributed-optimizer", "--dist-ckpt-optim-fully-reshardable")
"""What lets any parallel layout load a checkpoint: without the second the layout of the ranks must stay."""
PLAIN_LACKS = ("--moe-grouped-gemm",)
"""Flags of kernels that plain torch has not: it computes the same without."""

_LLAMA = "--swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear "
_LLAMA += "--untie-embeddings-and-output-weights --group-query-attention --num-query-groups 2 "
_EXPERTS = "--num-experts 4 --moe-router-topk 2 --moe-router-load-balancing-type aux_loss "
_EXPERTS += "--moe-aux-loss-coeff 1e-2 --moe-token-dispatcher-type alltoall "
MODELS = {
    "gpt": "",
    "gpt bf16": "--bf16",
    "Llama": _LLAMA,
    "Llama bf16": _LLAMA + "--bf16",
    "experts": _LLAMA + _EXPERTS,
    "grouped GEMM": _LLAMA + _EXPERTS + "--moe-grouped-gemm",
    "latent attention": "--multi-latent-attention --kv-lora-rank 32 --q-lora-rank 64 --qk-head-dim 32 "
    "--qk-pos-emb-head-dim 16 --v-head-dim 32 --normalization RMSNorm --swiglu --disable-bias-linear",
    "multi-token prediction": "--mtp-num-layers 1 " + _LLAMA,
}
"""Flags of each model, with the default layer spec."""


@dataclass(frozen=True)
class Case:
    """One run of ``model``, held against plain torch on one rank.

    With ``parallel`` flags it loads the reference's checkpoint, saved on one rank: the ranks of a pipeline
    draw other initial weights than one rank does. ``spec``: "local", or "default"; ``resumed``: it saves, and
    loads what it saved; ``older``: it loads a save of the older release (``--older-megatron-lm-path``).
    """

    model: str
    spec: str = "default"
    parallel: str = ""
    ranks: int = 1
    way: str = "torchrun"
    resumed: bool = False
    older: bool = False

    @property
    def name(self) -> str:
        """Name in the table."""
        what = ("resumed" if self.resumed else "", "checkpoint of the older release" if self.older else "")
        return ", ".join(filter(None, (self.model, self.parallel, *what)))

    @property
    def loads(self) -> bool:
        """Whether it starts from a checkpoint."""
        return bool(self.parallel or self.resumed or self.older)

    @property
    def limit(self) -> float:
        """Largest relative difference of a loss that is met."""
        return 2e-4 if "bf16" in self.model else 1e-6


_TP2 = "--tensor-model-parallel-size 2 --sequence-parallel"
_PP2 = "--pipeline-model-parallel-size 2"
_VPP = f"{_PP2} --num-layers-per-virtual-pipeline-stage 1"
_DP2 = "--overlap-grad-reduce --overlap-param-gather"
_CP2 = "--context-parallel-size 2"

QUICK = (
    Case("gpt", way="run"),
    Case("gpt", parallel=_TP2, ranks=2),
)
"""One reference only."""
FULL = (
    *QUICK,
    *(Case("gpt", spec="local", way=way) for way in ("torchrun", "autoload", "import")),
    *(Case(model) for model in MODELS if model != "gpt"),
    Case("Llama", spec="local"),
    Case("experts", spec="local"),
    Case("gpt", parallel=_PP2, ranks=2),
    Case("gpt", parallel=_DP2, ranks=2),
    Case("gpt", parallel=_VPP, ranks=2),
    Case("gpt", parallel=_CP2, ranks=2),
    Case("gpt", parallel=f"{_TP2} {_PP2} {_DP2}", ranks=8),
    Case("gpt bf16", parallel=f"{_TP2} {_DP2}", ranks=4),
    Case("latent attention", parallel=_TP2, ranks=2),
    Case("multi-token prediction", parallel=_PP2, ranks=2),
    # Megatron saves a random state for each data parallel rank with expert parallelism, and one without
    Case("grouped GEMM", parallel="--expert-model-parallel-size 2 --no-load-rng", ranks=2),
    Case("Llama", resumed=True),
    Case("Llama bf16", resumed=True),
    Case("gpt", older=True),
    Case("Llama", older=True),
)
