"""What else stock scripts are asked to do: one row is one run of a script of a Megatron-LM checkout.

``{name}`` in a flag stands for a path that test_stock_features.py makes: a folder of the run, or data.
"""

from __future__ import annotations

from dataclasses import dataclass

BERT_TOKENIZER = "--tokenizer-type BertWordPieceLowerCase --vocab-file {vocab} --legacy-tokenizer"


@dataclass(frozen=True)
class Feature:
    """``flags`` beside the small model of stock_script.MODEL, and what shows that they had effect.

    ``says``: regular expressions in the output; ``leaves``: globs below the run's folder; ``iterations``: the
    training iterations that print a loss; ``without``: flags of MODEL left out, with their values; ``mock``:
    train on Megatron's mock data; ``after``: flags of a run before, in the same folder.
    """

    flags: str
    says: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    iterations: int = 3
    ranks: int = 1
    script: str = "pretrain_gpt.py"
    without: tuple[str, ...] = ()
    mock: bool = True
    after: str = ""


FEATURES = {
    "evaluation, tensorboard, timers, memory": Feature(
        "--eval-iters 1 --eval-interval 2 --tensorboard-dir {folder}/tb --tensorboard-log-interval 1 "
        "--log-timers-to-tensorboard --log-memory-to-tensorboard --log-validation-ppl-to-tensorboard "
        "--log-world-size-to-tensorboard --timing-log-level 2 --log-throughput --log-params-norm "
        "--log-num-zeros-in-grad",
        says=(
            r"validation loss at iteration 2 \| lm loss value",
            r"optimizer-inner-step",
            r"params norm: \d",
            r"num zeros: \d",
            r"throughput per GPU",
        ),
        leaves=("tb/events*",),
    ),
    "exit after some iterations": Feature(
        "--exit-interval 2 --save {folder}/ckpt",
        says=("exiting program at iteration 2",),
        iterations=2,
        leaves=("ckpt/iter_0000002/*.distcp",),
    ),
    "torch profiler": Feature(
        "--profile --use-pytorch-profiler --profile-step-start 1 --profile-step-end 3 "
        "--tensorboard-dir {folder}/tb",
        leaves=("**/*.json*",),
    ),
    "initialised on the device": Feature("", without=("--use-cpu-initialization",)),
    "Bert": Feature(
        f"--data-path {{sentences}} {BERT_TOKENIZER} --eval-iters 1",
        script="pretrain_bert.py",
        mock=False,
        says=("sop loss",),
    ),
    "T5": Feature(
        f"--data-path {{sentences}} {BERT_TOKENIZER} --eval-iters 1 --vocab-extra-ids 100 "
        "--encoder-num-layers 2 --decoder-num-layers 2 --encoder-seq-length 128 --decoder-seq-length 64 "
        "--kv-channels 32 --ffn-hidden-size 512",
        script="pretrain_t5.py",
        without=("--num-layers", "--seq-length"),
        mock=False,
    ),
    "hybrid of attention and MLP layers": Feature(
        "--hybrid-override-pattern *- --spec megatron.core.models.mamba.mamba_layer_specs mamba_stack_spec",
        script="pretrain_mamba.py",
    ),
    "conversion of the checkpoint format": Feature(
        "--load {folder}/ckpt --ckpt-convert-format torch --ckpt-convert-save {folder}/converted "
        "--use-distributed-optimizer",
        after="--save {folder}/ckpt --use-distributed-optimizer",
        leaves=("converted/torch/iter_0000003/mp_rank_00/model_optim_rng.pt",),
        iterations=0,
    ),
}
