"""Megatron's trainer under every parallel strategy, on ranks of one thread: flags, start, losses."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.reference import stock_script

TIMEOUT_SECONDS = 900
VOCABULARY_MULTIPLE = 128
MODEL = (
    "--num-layers 4 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 4 --seq-length 64 "
    "--group-query-attention --num-query-groups 2 --swiglu --normalization RMSNorm --disable-bias-linear "
    "--position-embedding-type rope --untie-embeddings-and-output-weights --max-position-embeddings 64 "
    "--micro-batch-size 2 --global-batch-size 8 --split 90,5,5 --num-workers 0 --eval-iters 0 "
    "--eval-interval 10000 --log-interval 1 --attention-dropout 0 --distributed-timeout-minutes 2"
)
EXPERTS = "--num-experts 4 --moe-router-topk 2 --moe-aux-loss-coeff 1e-2 --moe-token-dispatcher-type alltoall"
MODELS = {
    "dense": "--hidden-dropout 0",
    "experts": f"--hidden-dropout 0 {EXPERTS}",
    "dropout": "--hidden-dropout 0.1",
}
"""What distinguishes the models; each has a reference on one rank."""

TP2, PP2, EP2 = (f"--{kind}-model-parallel-size 2" for kind in ("tensor", "pipeline", "expert"))
SP = "--sequence-parallel"
OPTIMIZER = "--use-distributed-optimizer"
CONTEXT = "--context-parallel-size 2 --cp-comm-type"


@dataclass(frozen=True)
class Strategy:
    """Ranks and flags of one way to train one of `MODELS`; `quick`: part of the benchmark's quick run."""

    ranks: int
    flags: str
    model: str = "dense"
    quick: bool = False


STRATEGIES = {
    "TP2": Strategy(2, TP2),
    "TP2 + SP": Strategy(2, f"{TP2} {SP}", quick=True),
    "PP2": Strategy(2, PP2),
    "PP2 + VPP": Strategy(2, f"{PP2} --num-layers-per-virtual-pipeline-stage 1", quick=True),
    "DP2": Strategy(2, ""),
    "DP2 + distributed optimizer": Strategy(2, OPTIMIZER),
    "DP2 + both overlaps": Strategy(
        2, f"{OPTIMIZER} --overlap-grad-reduce --overlap-param-gather", quick=True
    ),
    "CP2, ring": Strategy(2, f"{CONTEXT} p2p", quick=True),
    "CP2, all-gather": Strategy(2, f"{CONTEXT} allgather"),
    "CP2, all-to-all": Strategy(2, f"{CONTEXT} a2a"),
    "EP2": Strategy(2, EP2, "experts", quick=True),
    "EP2 x TP2 + SP": Strategy(4, f"{EP2} {TP2} {SP} --expert-tensor-parallel-size 1", "experts"),
    "TP2 x DP2": Strategy(4, TP2),
    "TP2 x PP2": Strategy(4, f"{TP2} {PP2}"),
    "TP2 x CP2 + SP": Strategy(4, f"{TP2} {SP} {CONTEXT} p2p"),
    "TP2 x PP2 x DP2": Strategy(8, f"{TP2} {PP2} {OPTIMIZER}"),
    "TP2, hidden dropout": Strategy(2, TP2, "dropout"),
}


def train(strategy: Strategy, words: list[str], folder: Path) -> dict[int, float]:
    """Iteration -> loss as printed, of a run in ``folder``; RuntimeError with the end of its output."""
    run = stock_script.train(
        stock_script.PRETRAIN, words, folder, ranks=strategy.ranks, timeout=TIMEOUT_SECONDS
    )
    if run.error:
        raise RuntimeError(f"{strategy} failed: {run.error}\n{run.output[-6000:]}")
    return run.losses


def flags(strategy: Strategy, data: list[str]) -> list[str]:
    """Flags of the model, on the data that the flags ``data`` name.

    The vocabulary is padded to the same size whatever the tensor parallel size, so that losses compare.
    """
    multiple = VOCABULARY_MULTIPLE // (2 if TP2 in strategy.flags else 1)
    words = f"{MODEL} {MODELS[strategy.model]} {strategy.flags} --make-vocab-size-divisible-by {multiple}"
    return [*words.split(), *data]


MOCK = ["--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", "120"]
"""Data flags for Megatron's made-up samples: nothing to prepare, little to learn."""
