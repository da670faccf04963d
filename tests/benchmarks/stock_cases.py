"""The runs of stock_scripts.py: model, flags, processes, start, and what the losses are held against."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

RECORD = Path(__file__).parents[1] / "reference" / "stock_curves.json"
"""Curves of stock pretrain_gpt.py on plain torch CPU and gloo, with their flags."""

ITERATIONS = 22
SAVED = 2
"""The reference of a model trains ITERATIONS and saves after SAVED: 20 remain for a run that loads it."""
RESHARDABLE = ("--use-distributed-optimizer", "--dist-ckpt-optim-fully-reshardable")
"""What lets any parallel layout load a checkpoint: without the second the layout of the ranks must stay."""

_LLAMA = "--swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear "
_LLAMA += "--untie-embeddings-and-output-weights --group-query-attention --num-query-groups 2 "
MODELS = {
    "gpt": "",
    "gpt bf16": "--bf16",
    "latent attention": "--multi-latent-attention --kv-lora-rank 32 --q-lora-rank 64 --qk-head-dim 32 "
    "--qk-pos-emb-head-dim 16 --v-head-dim 32 --normalization RMSNorm --swiglu --disable-bias-linear",
    "multi-token prediction": "--mtp-num-layers 1 " + _LLAMA,
    "grouped GEMM": _LLAMA + "--num-experts 4 --moe-router-topk 2 --moe-router-load-balancing-type aux_loss "
    "--moe-aux-loss-coeff 1e-2 --moe-token-dispatcher-type alltoall --moe-grouped-gemm",
}
"""Flags of the models whose reference is our own route ``host`` on one rank, with the default layer spec."""


@dataclass(frozen=True)
class Case:
    """One run, held against the recorded ``curve``, whose flags it has, or the reference of ``model``.

    With ``parallel`` flags it loads the reference's checkpoint, saved on one rank: the ranks of a pipeline
    draw other initial weights than one rank does. ``spec``: "local", or "default" for the flags without
    ``--transformer-impl local``; ``drop``: flags left out.
    """

    curve: str = ""
    model: str = ""
    spec: str = "default"
    parallel: str = ""
    ranks: int = 1
    way: str = "torchrun"
    drop: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """Name in the table."""
        words = (self.curve or self.model, self.parallel, *(f"without {flag}" for flag in self.drop))
        return ", ".join(filter(None, words))

    @property
    def limit(self) -> float:
        """Largest relative difference of a loss that is met: ten times what is measured."""
        return 1.5e-3 if "bf16" in self.curve + self.model else 3e-6


_TP2 = "--tensor-model-parallel-size 2 --sequence-parallel"
_PP2 = "--pipeline-model-parallel-size 2"
_VPP = f"{_PP2} --num-layers-per-virtual-pipeline-stage 1"
_DP2 = "--overlap-grad-reduce --overlap-param-gather"
_CP2 = "--context-parallel-size 2"

QUICK = (
    Case("tp1", spec="local", way="run"),
    Case("tp1_bf16", way="autoload"),
    Case("llama_tp1", drop=("--no-rope-fusion",), way="import"),
    Case("tp2_sp", ranks=2),
)
"""Held against recorded curves only: a reference would cost another run."""
FULL = (
    *QUICK,
    Case("tp1", spec="local", way="torchrun"),
    Case("tp1", way="run"),
    Case("tp1_bf16", spec="local"),
    Case("llama_tp1", spec="local"),
    Case("llama_tp1"),
    Case("moe_tp1", spec="local"),
    Case("moe_tp1"),
    Case("dp2_distopt_overlap", ranks=2),
    Case("pp2", ranks=2),
    Case("moe_ep2", ranks=2),
    *(Case(model=model) for model in MODELS),
    Case(model="gpt", parallel=_TP2, ranks=2),
    Case(model="gpt", parallel=_PP2, ranks=2),
    Case(model="gpt", parallel=_DP2, ranks=2),
    Case(model="gpt", parallel=_VPP, ranks=2),
    Case(model="gpt", parallel=_CP2, ranks=2),
    Case(model="gpt", parallel=f"{_TP2} {_PP2} {_DP2}", ranks=8),
    Case(model="gpt bf16", parallel=f"{_TP2} {_DP2}", ranks=4),
    Case(model="latent attention", parallel=_TP2, ranks=2),
    Case(model="multi-token prediction", parallel=_PP2, ranks=2),
    # Megatron saves a random state for each data parallel rank with expert parallelism, and one without
    Case(model="grouped GEMM", parallel="--expert-model-parallel-size 2 --no-load-rng", ranks=2),
)
