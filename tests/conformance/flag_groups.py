"""Command lines that together hold every flag of Megatron's training parser that its own scripts use.

`tests/reference/stock_flags.tsv` lists those flags (flag, commonest value, who reads it), collected from the
example scripts and functional tests of Megatron-LM core_v0.16.1. A group is one small run of one script;
values are small, choices are those of Megatron's scripts where there is one.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

STOCK_FLAGS = Path(__file__).parents[1] / "reference" / "stock_flags.tsv"
TRAINING = "training"


@dataclass(frozen=True)
class Group:
    """One run of `script` on `ranks` processes.

    `flags` follow BASE, of which the flags in `without` are left out; braces are places: {tmp}, a writable
    folder, and files that :mod:`.flag_runs` makes. `refused`: words of the error that arguments must end
    with; `fails`: of the error that training must end with, when the arguments pass. `after`: a group that
    runs before in the same {tmp}. `needs`: a package of the extra "megatron-options" that some releases ask
    for. `loss`: whether there is one; who teaches by logits computes none.
    """

    ranks: int
    flags: str
    refused: str = ""
    fails: str = ""
    ends: str = ""
    script: str = "pretrain_gpt.py"
    without: tuple[str, ...] = ()
    after: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    needs: str = ""
    loss: bool = True


BASE = """
--num-layers 2 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --max-position-embeddings 32
--micro-batch-size 1 --global-batch-size 4 --train-iters 2 --lr 0.00015 --min-lr 1e-05 --lr-decay-style cosine
--mock-data --tokenizer-type NullTokenizer --vocab-size 127 --make-vocab-size-divisible-by 32 --split 949,50,1
--eval-iters 1 --eval-interval 1000 --log-interval 1 --weight-decay 1e-2 --clip-grad 1.0 --num-workers 0
--distributed-backend nccl --seed 42
"""

MOE = """
--num-experts 4 --moe-router-topk 2 --moe-ffn-hidden-size 64 --disable-bias-linear --swiglu --bf16
--untie-embeddings-and-output-weights --moe-layer-freq ([0]*1+[1]*1)
"""

MANY_QUEUES = (("CUDA_DEVICE_MAX_CONNECTIONS", "8"),)
"""Megatron wants 1 with tensor parallelism, as flag_runs.py sets it, and another number with FSDP."""

GROUPS: dict[str, Group] = {
    "dense": Group(
        1,
        """--bf16 --use-mcore-models --transformer-impl transformer_engine --attention-softmax-in-fp32
        --disable-bias-linear --ffn-hidden-size 128 --untie-embeddings-and-output-weights
        --position-embedding-type rope --normalization RMSNorm --attention-dropout 0.0 --hidden-dropout 0.0
        --swiglu --group-query-attention --num-query-groups 2 --rotary-percent 0.5 --rotary-base 10000
        --kv-channels 16 --init-method-std 0.014 --adam-beta1 0.9 --adam-beta2 0.95 --adam-eps 1e-8
        --optimizer adam --qk-layernorm --norm-epsilon 1e-6 --no-bias-swiglu-fusion --use-flash-attn
        --attention-backend flash --add-qkv-bias --no-create-attention-mask-in-dataloader
        --accumulate-allreduce-grads-in-fp32 --cross-entropy-loss-fusion --calculate-per-token-loss
        --apply-wd-to-qk-layernorm --attention-output-gate --rotary-seq-len-interpolation-factor 2
        --use-rope-scaling --rope-scaling-factor 8.0 --no-rope-freq 2""",
    ),
    "local": Group(
        1,
        """--transformer-impl local --attention-backend unfused --fp16 --loss-scale 1024
        --apply-query-key-layer-scaling --no-masked-softmax-fusion --no-bias-gelu-fusion
        --no-bias-dropout-fusion --no-persist-layer-norm --no-gradient-accumulation-fusion
        --no-position-embedding --use-rotary-position-embeddings --rotary-interleaved --no-rope-fusion
        --recompute-activations --no-async-tensor-model-parallel-allreduce --deterministic-mode
        --no-scatter-gather-tensors-in-pipeline --use-cpu-initialization""",
        environment=(("NCCL_ALGO", "Ring"),),
    ),
    "activations": Group(
        1,
        """--squared-relu --no-bias-gelu-fusion --apply-layernorm-1p --qk-l2-norm --bf16
        --grad-reduce-in-bf16""",
    ),
    "gpt_oss": Group(
        1,
        """--quick-geglu --glu-linear-offset 1.0 --activation-func-clamp-value 7.0 --softmax-type learnable
        --window-size 16,0 --window-attn-skip-freq 2 --no-bias-swiglu-fusion
        --no-bias-gelu-fusion --bf16 --no-rope-fusion
        --position-embedding-type rope --enable-experimental --transformer-impl local""",
    ),
    "recompute": Group(
        1, "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1 --bf16"
    ),
    "recompute_modules": Group(
        1,
        """--recompute-granularity selective --recompute-modules core_attn layernorm --bf16
        --moe-layer-recompute --num-experts 2 --no-bias-gelu-fusion""",
    ),
    "logging": Group(
        1,
        """--log-num-zeros-in-grad --log-timers-to-tensorboard --log-validation-ppl-to-tensorboard
        --log-memory-to-tensorboard --tensorboard-dir {tmp}/tensorboard --tensorboard-log-interval 1
        --log-params-norm --log-throughput --log-progress --timing-log-level 2 --timing-log-option minmax
        --logging-level 40 --log-straggler --disable-straggler-on-startup --straggler-minmax-count 16
        --empty-unused-memory-level 2 --manual-gc --manual-gc-interval 1 --exit-interval 50
        --exit-duration-in-mins 230 --distributed-timeout-minutes 60 --save {tmp}/save --save-interval 2
        --profile --profile-step-start 1 --profile-step-end 2 --test-mode --max-tokens-to-oom 3600000
        --check-weight-hash-across-dp-replicas-interval 1 --trust-remote-code""",
    ),
    "schedule": Group(
        1,
        """--lr-warmup-fraction 0.01 --lr-decay-iters 100 --lr-warmup-init 1e-7 --decoupled-lr 0.0005
        --decoupled-min-lr 4.5e-05 --untie-embeddings-and-output-weights --override-opt_param-scheduler
        --data-parallel-random-init""",
    ),
    "warmup_iters": Group(1, "--lr-warmup-iters 1 --use-checkpoint-opt_param-scheduler --lr-decay-iters 10"),
    "samples": Group(
        1,
        """--train-samples 8 --lr-decay-samples 8 --lr-warmup-samples 2 --rampup-batch-size 2 2 4
        --no-check-for-nan-in-loss-and-grad""",
        without=("train-iters",),
    ),
    "data": Group(
        1,
        """--reset-position-ids --reset-attention-mask --eod-mask-loss --no-mmap-bin-files
        --data-cache-path {tmp}/cache --dataloader-type cyclic --num-workers 1 --legacy-tokenizer""",
    ),
    "fill_in_the_middle": Group(1, "--fim-data --fim-rate 0.5 --fim-spm-rate 0.5", refused="FIM"),
    "checkpoint": Group(
        1,
        """--save {tmp}/save --save-interval 1 --save-retain-interval 2 --async-save
        --use-persistent-ckpt-worker --ckpt-format torch_dist --ckpt-fully-parallel-save
        --ckpt-assume-constant-structure --use-distributed-optimizer --dist-ckpt-optim-fully-reshardable""",
    ),
    "resume": Group(
        1,
        """--load {tmp}/save --ckpt-fully-parallel-load --dist-ckpt-strictness log_all
        --auto-detect-ckpt-format --use-distributed-optimizer --dist-ckpt-optim-fully-reshardable
        --no-load-optim --no-load-rng --finetune""",
        after="checkpoint",
    ),
    "pretrained": Group(
        1,
        "--pretrained-checkpoint {tmp}/save --save {tmp}/tuned --load {tmp}/tuned --save-interval 2",
        after="checkpoint",
    ),
    "checkpoint_torch": Group(
        1,
        """--save {tmp}/save --save-interval 1 --ckpt-format torch --no-ckpt-fully-parallel-save""",
    ),
    "arguments_of_checkpoint": Group(
        1,
        """--load {tmp}/save --ckpt-format torch --use-checkpoint-args --train-iters 4
        --no-use-tokenizer-model-from-checkpoint-args --override-opt_param-scheduler""",
        after="checkpoint_torch",
    ),
    "exit_on_missing": Group(1, "--load {tmp}/none --exit-on-missing-checkpoint", ends="set ... exiting"),
    "rerun": Group(
        1, "--rerun-mode validate_results --error-injection-rate 100 --error-injection-type transient_error"
    ),
    "moe": Group(
        1,
        MOE
        + """--moe-grouped-gemm --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-4
        --moe-z-loss-coeff 1e-3 --moe-router-dtype fp32 --moe-router-pre-softmax
        --moe-router-topk-scaling-factor 2.0 --moe-token-dispatcher-type alltoall --moe-permute-fusion
        --moe-router-fusion --moe-shared-expert-intermediate-size 64 --moe-shared-expert-gate
        --moe-shared-expert-overlap --use-tp-pp-dp-mapping""",
    ),
    "moe_deepseek": Group(
        2,
        MOE
        + """--moe-router-score-function sigmoid --moe-router-enable-expert-bias
        --moe-router-bias-update-rate 1e-3 --moe-router-num-groups 2 --moe-router-group-topk 2
        --moe-router-load-balancing-type seq_aux_loss --moe-aux-loss-coeff 1e-4
        --expert-model-parallel-size 2 --expert-tensor-parallel-size 1 --moe-token-dispatcher-type flex
        --moe-enable-deepep --moe-flex-dispatcher-backend deepep --multi-latent-attention --kv-lora-rank 16
        --q-lora-rank 24 --qk-head-dim 16 --qk-pos-emb-head-dim 8 --v-head-dim 16
        --rotary-scaling-factor 40 --mscale 1.0 --mscale-all-dim 1.0 --position-embedding-type rope
        --mtp-num-layers 1 --mtp-loss-scaling-factor 0.1""",
    ),
    "moe_topk1": Group(
        1,
        MOE.replace("--moe-router-topk 2", "--moe-router-topk 1").replace("--swiglu", "--squared-relu")
        + """--moe-router-pre-softmax --moe-apply-probs-on-input --use-fused-weighted-squared-relu
        --moe-token-drop-policy probs""",
    ),
    "overlap": Group(
        2,
        """--bf16 --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
        --ddp-average-in-collective --ddp-num-buckets 2 --num-distributed-optimizer-instances 1
        --disable-gloo-process-groups""",
    ),
    "tensor_parallel": Group(
        4,
        """--bf16 --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2
        --sequence-parallel --tp-comm-overlap
        --tp-comm-overlap-cfg {tmp}/none.yaml --defer-embedding-wgrad-compute --wgrad-deferral-limit 2
        --untie-embeddings-and-output-weights""",
    ),
    "pipeline": Group(
        2,
        """--bf16 --pipeline-model-parallel-size 2 --num-layers 4 --num-layers-per-virtual-pipeline-stage 1
        --microbatch-group-size-per-virtual-pipeline-stage 2 --overlap-p2p-communication-warmup-flush""",
    ),
    "pipeline_uneven": Group(
        2,
        """--pipeline-model-parallel-size 2 --num-layers 3 --decoder-first-pipeline-num-layers 1
        --decoder-last-pipeline-num-layers 2""",
    ),
    "pipeline_embedding": Group(
        2,
        """--pipeline-model-parallel-size 2 --num-layers 2 --account-for-embedding-in-pipeline-split
        --account-for-loss-in-pipeline-split --untie-embeddings-and-output-weights""",
    ),
    "pipeline_stages": Group(
        2, "--pipeline-model-parallel-size 2 --num-layers 4 --num-virtual-stages-per-pipeline-rank 2"
    ),
    "pipeline_layout": Group(
        2, "--pipeline-model-parallel-size 2 --num-layers 4 --pipeline-model-parallel-layout Et|t|t|tL"
    ),
    "context_parallel": Group(2, "--context-parallel-size 2 --cp-comm-type p2p --bf16"),
    "fsdp2": Group(
        2,
        """--use-torch-fsdp2 --ckpt-format torch_dist --untie-embeddings-and-output-weights
        --no-gradient-accumulation-fusion""",
        environment=MANY_QUEUES,
    ),
    "megatron_fsdp": Group(
        2,
        """--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params --bf16
        --use-distributed-optimizer --ckpt-format fsdp_dtensor --no-gradient-accumulation-fusion
        --init-model-with-meta-device""",
        environment=MANY_QUEUES,
    ),
    "cuda_graphs": Group(
        1,
        """--cuda-graph-impl local --cuda-graph-scope full --cuda-graph-warmup-steps 0 --te-rng-tracker
        --bf16 --moe-pad-experts-for-cuda-graph-inference""",
    ),
    "cuda_graphs_old": Group(1, "--enable-cuda-graph --bf16 --decode-only-cuda-graphs"),
    "fp8": Group(
        1,
        """--bf16 --fp8-format hybrid --fp8-recipe tensorwise --fp8-param-gather --fp8-amax-history-len 1024
        --fp8-amax-compute-algo max --fp8-margin 0 --fp8-interval 1 --first-last-layers-bf16
        --num-layers-at-start-in-bf16 1 --num-layers-at-end-in-bf16 1 --use-distributed-optimizer
        --cross-entropy-loss-fusion --cross-entropy-fusion-impl te --fine-grained-activation-offloading
        --offload-modules core_attn""",
    ),
    "inference_in_training": Group(
        1,
        """--inference-max-seq-length 64 --inference-max-requests 1 --inference-max-batch-size 4
        --inference-dynamic-batching --inference-dynamic-batching-buffer-size-gb 1
        --inference-dynamic-batching-max-requests 4 --inference-dynamic-batching-max-tokens 256
        --inference-dynamic-batching-num-cuda-graphs 1 --inference-dynamic-batching-unified-memory-level 0
        --inference-dynamic-batching-cuda-graph-max-tokens 2048 --inference-logging-step-interval 1
        --inference-rng-tracker --disable-chunked-prefill""",
    ),
    "chunked_prefill": Group(1, "--enable-chunked-prefill"),
    "flash_decode": Group(1, "--flash-decode"),
    "inference_layers": Group(
        1,
        "--transformer-impl inference_optimized --inference-fuse-tp-communication",
        refused="inference_optimized",
    ),
    "rl": Group(
        1,
        """--perform-rl-step --grpo-clamp-eps-lower 0.2 --grpo-clamp-eps-upper 0.2 --grpo-kl-beta 0.0
        --grpo-iterations 1 --grpo-group-size 2 --grpo-prompts-per-step 2 --grpo-entropy-term-weight 0.0
        --langrl-env-config {tmp}/none.yaml --langrl-inference-server-type inplace_megatron
        --langrl-inference-server-conversation-template none --rl-offload-optimizer-during-inference
        --rl-use-sequence-packing --rl-sequence-packing-algo fifo --rl-partial-rollouts
        --rl-inference-tensor-model-parallel-size 1 --rl-inference-pipeline-model-parallel-size 1
        --rl-inference-expert-model-parallel-size 1 --rl-inference-expert-tensor-model-parallel-size 1
        --rl-inference-model-unified-memory-level 0 --rl-offload-inference-model-weights-when-idle
        --rl-inference-logprobs-is-correction --rl-importance-sampling-truncation-coef 1.0
        --rl-default-temperature 1.0 --rl-default-top-p 0 --rl-default-top-k -1 --rl-skip-bos-token
        --rl-parallel-generation-tasks 1 --refit-method gloo""",
        refused="dynamic inference",
    ),
    "rl_no_packing": Group(1, "--no-rl-use-sequence-packing"),
    "gated_delta_net": Group(
        1,
        """--experimental-attention-variant gated_delta_net --linear-attention-freq 2
        --linear-conv-kernel-dim 4 --linear-key-head-dim 16 --linear-value-head-dim 16
        --linear-num-key-heads 4 --linear-num-value-heads 4""",
        refused="flash-linear-attention",
    ),
    "muon": Group(
        1,
        """--optimizer muon --muon-momentum 0.9 --muon-extra-scale-factor 0.2 --muon-scale-mode spectral
        --ckpt-format torch --bf16""",
        needs="emerging-optimizers",
    ),
    "old_recompute": Group(1, "--checkpoint-activations", refused="checkpoint-activations"),
    "hierarchical_context": Group(
        4,
        """--context-parallel-size 4 --cp-comm-type a2a+p2p --hierarchical-context-parallel-sizes 2 2""",
        fails="a2a",
    ),
    "param_gather_in_step": Group(
        2,
        """--pipeline-model-parallel-size 2 --num-layers 4 --num-layers-per-virtual-pipeline-stage 1
        --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
        --overlap-param-gather-with-optimizer-step --bf16 --ckpt-format torch""",
    ),
    "expert_overlap": Group(
        2,
        MOE
        + """--expert-model-parallel-size 2 --moe-token-dispatcher-type alltoall
        --overlap-moe-expert-parallel-comm""",
    ),
    "real_data": Group(
        1,
        """--data-path {data} --tokenizer-type GPT2BPETokenizer --vocab-file {vocab} --merge-file {merges}
        --legacy-tokenizer --vocab-extra-ids 2""",
        without=("mock-data",),
    ),
    "data_per_split": Group(1, "--per-split-data-args-path {splits}", without=("mock-data", "split")),
    "tiktoken": Group(
        1,
        """--tokenizer-type TikTokenizer --tokenizer-model {tiktoken} --tiktoken-pattern v2
        --vocab-size 1256 --padded-vocab-size 1280""",
    ),
    "wandb": Group(
        1,
        """--wandb-project project --wandb-exp-name name --wandb-save-dir {tmp}/wandb --wandb-entity entity
        --tensorboard-dir {tmp}/tensorboard""",
        fails="wandb",
    ),
    "mamba": Group(
        1,
        """--is-hybrid-model --hybrid-override-pattern M*-M --num-layers 4 --mamba-state-dim 16
        --mamba-head-dim 16 --mamba-num-groups 2 --mamba-num-heads 8 --bf16
        --spec megatron.core.models.mamba.mamba_layer_specs mamba_stack_spec""",
        script="pretrain_mamba.py",
        fails="MambaSSM",
    ),
    "mamba_ratios": Group(
        1,
        """--is-hybrid-model --hybrid-attention-ratio 0.25 --hybrid-mlp-ratio 0.25 --num-layers 4
        --spec megatron.core.models.mamba.mamba_layer_specs mamba_stack_spec""",
        script="pretrain_mamba.py",
        fails="MambaSSM",
    ),
    "bert": Group(
        1,
        """--bert-no-binary-head --data-path {data} --tokenizer-type BertWordPieceLowerCase
        --vocab-file {words} --legacy-tokenizer --position-embedding-type learned_absolute""",
        script="pretrain_bert.py",
        without=("mock-data",),
    ),
    "t5": Group(
        1,
        """--encoder-num-layers 2 --decoder-num-layers 2 --encoder-seq-length 32 --decoder-seq-length 16
        --max-position-embeddings 32 --vocab-extra-ids 100 --kv-channels 16 --ffn-hidden-size 128
        --data-path {data} --tokenizer-type BertWordPieceCase --vocab-file {words} --legacy-tokenizer""",
        script="pretrain_t5.py",
        without=("num-layers", "seq-length", "max-position-embeddings", "mock-data"),
    ),
    "vision": Group(
        1, "--img-h 32 --img-w 32 --patch-dim 16", fails="torchvision", script="pretrain_vision_classify.py"
    ),
}


def words(group: Group, **places: object) -> list[str]:
    """The group's command line after the script's name; `places` fill what is in braces."""
    base = shlex.split(BASE)
    for flag in group.without:
        start = base.index(f"--{flag}")
        end = next((i for i in range(start + 1, len(base)) if base[i].startswith("--")), len(base))
        del base[start:end]
    return [word.format(**places) for word in base + shlex.split(group.flags)]


def stock_flags(reader: str = TRAINING) -> list[str]:
    """Flags of the list that `reader` reads, in its order (the most used first)."""
    rows = (line.split("\t") for line in STOCK_FLAGS.read_text().splitlines())
    return [flag for flag, _value, who in rows if who == reader]
