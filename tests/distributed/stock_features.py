"""What else stock scripts are asked to do: one row is one run of a script of a Megatron-LM checkout.

``{name}`` in a flag stands for a path that test_stock_features.py makes: a folder of the run, or data.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BERT_TOKENIZER = "--tokenizer-type BertWordPieceLowerCase --vocab-file {vocab} --legacy-tokenizer"


@dataclass(frozen=True)
class Feature:
    """``flags`` beside the small model of stock_script.MODEL, and what shows that they had effect.

    ``says``: regular expressions in the output; ``leaves``: globs below the run's folder; ``iterations``: the
    training iterations that print a loss; ``without``: flags of MODEL left out, with their values; ``mock``:
    train on Megatron's mock data; ``after``: flags of a run before, in the same folder; ``stops``: the run is
    to end with another status than 0.
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
    stops: bool = False
    variables: dict[str, str] = field(default_factory=dict)


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
    "checks, stragglers, garbage collection": Feature(
        "--deterministic-mode --rerun-mode validate_results --log-straggler "
        "--straggler-minmax-count 1 --disable-straggler-on-startup --empty-unused-memory-level 2 --manual-gc "
        "--manual-gc-interval 2 --check-weight-hash-across-dp-replicas-interval 2",
        says=("Weight hashes match",),
        ranks=2,
        # Megatron wants both set in deterministic mode; they choose among NVIDIA's algorithms
        variables={"NCCL_ALGO": "Ring", "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0"},
    ),
    "rerun with injected errors": Feature(
        "--rerun-mode validate_results --error-injection-rate 2 --error-injection-type transient_error "
        "--save {folder}/ckpt",
        # it saves and ends with one of two statuses, for the scheduler to start the job again
        says=("Possible transient error", r"exitcode +: 1[67]"),
        iterations=1,
        stops=True,
        leaves=("ckpt/iter_*/*.distcp",),
    ),
    "a loss that is not a number": Feature(
        "--lr 1e30 --min-lr 1e29 --clip-grad 0 --save {folder}/ckpt",
        says=(r"Unexpected result (nan|inf)",),
        iterations=2,
        stops=True,
    ),
    "torch profiler": Feature(
        "--profile --use-pytorch-profiler --profile-step-start 1 --profile-step-end 3 "
        "--tensorboard-dir {folder}/tb",
        leaves=("**/*.json*",),
    ),
    "profile with range markers": Feature("--profile --profile-step-start 1 --profile-step-end 2"),
    "initialised on the device": Feature("", without=("--use-cpu-initialization",)),
    "torch FSDP2": Feature(
        "--use-torch-fsdp2 --no-gradient-accumulation-fusion --untie-embeddings-and-output-weights "
        "--ckpt-format torch_dcp --save {folder}/ckpt",
        without=("--use-cpu-initialization",),
        ranks=2,
        leaves=("ckpt/iter_0000003/*",),
    ),
    "Megatron FSDP from device meta": Feature(
        "--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params --ckpt-format fsdp_dtensor "
        "--no-gradient-accumulation-fusion --init-model-with-meta-device --use-distributed-optimizer "
        "--save {folder}/ckpt",
        without=("--use-cpu-initialization",),
        ranks=2,
        leaves=("ckpt/iter_0000003/*",),
    ),
    "a checkpoint into a model from device meta": Feature(
        "--load {folder}/ckpt --init-model-with-meta-device --finetune",
        without=("--use-cpu-initialization",),
        after="--save {folder}/ckpt --no-save-optim --no-save-rng",
    ),
    "indexed data": Feature(f"--data-path {{sentences}} {BERT_TOKENIZER}", mock=False),
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
