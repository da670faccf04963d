"""Command lines that hold the flags which Megatron's training parser has had since core_v0.17.

`tests/reference/flags_since_0.16.txt` lists them: those of core_v0.19.1's parser that core_v0.16.1's lacks.
As in :mod:`.flag_groups`, a group is one small run of one script.
"""

from __future__ import annotations

from pathlib import Path

from tests.conformance.flag_groups import GROUPS, MANY_QUEUES, MOE, Group

NEW_FLAGS = Path(__file__).parents[1] / "reference" / "flags_since_0.16.txt"
SPARSE = """
--multi-latent-attention --kv-lora-rank 16 --q-lora-rank 24 --qk-head-dim 16 --qk-pos-emb-head-dim 8
--v-head-dim 16 --position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear --bf16
--experimental-attention-variant dsa --dsa-indexer-n-heads 4 --dsa-indexer-head-dim 16 --dsa-indexer-topk 8
--no-rope-fusion --dsa-indexer-loss-coeff 0.1
"""

NEW_GROUPS: dict[str, Group] = {
    "width_transfer": Group(
        1,
        """--use-mup --mup-base-hidden-size 32 --mup-width-mult 2.0 --mup-embedding-mult 1.5
        --mup-output-mult 0.5 --mup-base-head-dim 8 --mup-attn-scale-power 1.0""",
    ),
    "yarn": Group(
        1,
        """--position-embedding-type yarn --rotary-scaling-factor 4 --yarn-original-max-position-embeddings 16
        --yarn-beta-fast 32 --yarn-beta-slow 1 --yarn-correction-range-round-to-int --mscale 1.0
        --mscale-all-dim 1.0 --no-rope-fusion""",
    ),
    "yarn_unrounded": Group(
        1,
        """--position-embedding-type yarn --rotary-scaling-factor 4 --yarn-original-max-position-embeddings 16
        --no-yarn-correction-range-round-to-int --mscale 1.0 --mscale-all-dim 1.0 --no-rope-fusion""",
    ),
    "sparse_attention": Group(
        1,
        SPARSE
        + """--dsa-kernel-backend none --dsa-indexer-topk-freq 1 --dsa-indexer-skip-topk-offset 0
        --dsa-indexer-rope-interleaved --no-dsa-indexer-rotate-activation --no-dsa-indexer-scoring-relu
        --dsa-indexer-k-norm-epsilon 1e-6 --dsa-indexer-k-norm-fp32""",
    ),
    "sparse_attention_negated": Group(
        1, SPARSE + "--disable-dsa-indexer-rotate-activation --disable-dsa-indexer-scoring-relu"
    ),
    "prediction": Group(
        1, "--mtp-num-layers 2 --mtp-use-repeated-layer --mtp-detach-heads --position-embedding-type rope"
    ),
    "batch_schedule": Group(
        1,
        """--train-samples 8 --lr-decay-samples 8 --step-batch-size-schedule 0:2
        --exit-signal-handler-for-training""",
        without=("train-iters", "global-batch-size"),
    ),
    "evaluation": Group(
        1,
        """--start-eval-at-iter 1 --eval-interval 1 --eval-global-batch-size 2
        --eval-micro-batch-size 1 --null-tokenizer-eod-id 126 --null-tokenizer-pad-id -1
        --no-pad-vocab-size --padded-vocab-size 128""",
    ),
    "validation_sets": Group(
        1,
        """--multiple-validation-sets --full-validation --validation-set-names one --data-path {data}
        --split 900,100,0""",  # its evaluation of a test set takes that for a list, too
        without=("mock-data",),
    ),
    "documents": Group(
        1,
        """--dataloader-inter-document-masking --eod-mask-loss --mlp-chunks-for-training 2
        --freeze-all-layers""",
    ),
    "vocabulary_unpadded": Group(1, "--disable-pad-vocab-size --padded-vocab-size 128"),
    "recorded": Group(
        1,
        """--save {tmp}/save --save-interval 2 --save-params-interval 1 --save-activations-interval 1
        --ckpt-format torch_dist --profile --use-pytorch-profiler --profile-step-start 1 --profile-step-end 2
        --pytorch-profiler-collect-shapes --pytorch-profiler-collect-callstack --record-shapes
        --tensorboard-dir {tmp}/tensorboard""",
    ),
    "recorded_for_tools": Group(
        1,
        """--nvtx-ranges --pytorch-profiler-collect-chakra --gpu-sniff-test-interval 1
        --tensorboard-dir {tmp}/tensorboard""",
    ),
    "flight_recorder": Group(
        2,
        """--flight-recorder-dump-path {tmp}/flights --flight-recorder-trace-buffer-size 100
        --no-flight-recorder-dump-on-timeout --flight-recorder-include-stack-trace
        --no-flight-recorder-include-only-active --no-flight-recorder-extra-dump-on-exec
        --disable-align-grad-reduce""",
    ),
    "flight_recorder_negated": Group(
        2,
        """--disable-flight-recorder-dump-on-timeout --disable-flight-recorder-include-only-active
        --disable-flight-recorder-extra-dump-on-exec""",
    ),
    "fault_injection": Group(
        1,
        """--fault-injector-ranks 0 --fault-injector-fault-types hang,crash
        --fault-injector-fault-probabilities 0.5,0.5 --fault-injector-mtti-seconds 100000
        --fault-injector-offset-seconds 1000 --fault-injector-seed 1
        --fault-injector-delay-start-iteration 1""",
        fails="nvidia_resiliency_ext",
    ),
    "fault_injection_at": Group(
        2,
        "--fault-injector-num-ranks 1 --fault-injector-fault-delay 100000 --fault-injector-fault-types hang",
        fails="nvidia_resiliency_ext",
    ),
    "async_save": Group(
        2,
        """--save {tmp}/save --save-interval 1 --ckpt-format torch_dist --async-save --async-strategy mcore
        --use-persistent-ckpt-worker --async-ckpt-cpu-priority 5 --async-ckpt-io-priority 3
        --async-ckpt-use-cpu-shm --dist-ckpt-workers 1 --verify-integrity
        --ckpt-fully-parallel-save-process-group dp --use-distributed-optimizer""",
    ),
    "verified_resume": Group(
        2,
        """--load {tmp}/save --verify-integrity --ckpt-fully-parallel-load
        --ckpt-fully-parallel-load-exchange-algo gather_rounds --ckpt-fully-parallel-load-process-group dp
        --no-ckpt-load-validate-sharding-integrity --no-stream-ckpt-dequant --override-ckpt-iteration 1
        --use-distributed-optimizer --train-iters 4 --override-opt_param-scheduler""",
        after="async_save",
    ),
    "negated_load": Group(1, "--disable-ckpt-load-validate-sharding-integrity --disable-stream-ckpt-dequant"),
    "object_storage": Group(1, "--enable-msc", refused="multi-storage-client"),
    "router": Group(
        2,
        MOE
        + """--moe-router-load-balancing-type quantile_balancing --moe-router-quantile-balancing-ema 0.9
        --moe-router-score-function sqrtsoftplus --expert-model-parallel-size 2
        --moe-token-dispatcher-type alltoall --moe-routing-trace-path {tmp}/trace
        --moe-routing-trace-max-training-iters 1 --moe-routing-trace-capture-logits
        --moe-routing-trace-capture-hidden-states --moe-routing-trace-dump-weights
        --save {tmp}/save --save-interval 2 --save-tokens-per-expert-interval 1""",
    ),
    "forced_router": Group(1, MOE + "--moe-router-force-biased 0.1"),
    "expert_buffers": Group(
        2,
        MOE
        + """--moe-grouped-gemm --expert-model-parallel-size 2 --moe-token-dispatcher-type flex
        --moe-flex-dispatcher-backend hybridep --moe-flex-dispatcher-num-sms 8
        --moe-hybridep-num-blocks-permute 4 --moe-hybridep-num-blocks-unpermute 4
        --moe-hybridep-num-sms-preprocessing 8 --moe-permute-fusion-into-hybridep
        --moe-hybridep-pad-uneven-dispatch-inputs""",
    ),
    "interleaved_experts": Group(
        1,
        MOE
        + """--moe-grouped-gemm --moe-mlp-glu-interleave-size 32 --moe-shared-expert-intermediate-size 64
        --use-grouped-gemm-for-shared-expert --moe-shared-expert-glu-interleave-size 32""",
        fails="Transformer Engine >= 2.14",
    ),
    "paged_stash": Group(
        1,
        MOE
        + """--moe-grouped-gemm --moe-paged-stash --moe-paged-stash-page-size 64
        --moe-paged-stash-buffer-size-factor-cuda 1.1 --moe-paged-stash-buffer-size-factor-cpu 0.0""",
    ),
    "rank_capacity": Group(1, MOE + "--moe-expert-rank-capacity-factor 2.0", refused="by expert"),
    "grouped_parameters": Group(
        1,
        MOE + "--moe-grouped-gemm --moe-single-grouped-weight --moe-single-grouped-bias",
        fails="transformer-engine>=2.14.0",
    ),
    "overlapped_experts": Group(
        2,
        MOE
        + """--expert-model-parallel-size 2 --moe-token-dispatcher-type alltoall
        --overlap-moe-expert-parallel-comm --high-priority-a2a-comm-stream""",
    ),
    "overlapped_gradients": Group(
        2,
        MOE
        + """--expert-model-parallel-size 2 --moe-token-dispatcher-type alltoall --moe-grouped-gemm
        --overlap-dispatch-backward-with-experts-wgrad""",
    ),
    "fused_layers": Group(
        1,
        """--bf16 --normalization RMSNorm --fused-residual-rmsnorm --flash-attention-version 2
        --swiglu --disable-bias-linear""",
    ),
    "fused_by_transformer_engine": Group(
        1,
        """--bf16 --use-transformer-engine-op-fuser --use-grouped-gemm-for-dense-mlp --swiglu
        --normalization RMSNorm --disable-bias-linear""",
        fails="Transformer Engine >= 2.14",
    ),
    "latent_fusion": Group(
        1,
        """--multi-latent-attention --kv-lora-rank 16 --q-lora-rank 24 --qk-head-dim 16
        --qk-pos-emb-head-dim 8 --v-head-dim 16 --position-embedding-type rope --mla-down-proj-fusion
        --bf16""",
    ),
    "graphs": Group(
        1,
        """--bf16 --cuda-graph-impl local --cuda-graph-modules attn mlp --optimizer-cuda-graph
        --inference-cuda-graph-scope none --inference-cuda-graph-all-prefills
        --inference-cuda-graph-max-tokens 64 --delay-offload-until-cuda-graph""",
    ),
    "offloading": Group(
        1,
        """--bf16 --fine-grained-activation-offloading --offload-modules core_attn
        --activation-offload-fraction 0.5 --delta-offload-bytes-across-pp-ranks 0
        --fine-grained-offloading-max-inflight-offloads 1 --cpu-offloading-retain-pinned-cpu-buffers""",
    ),
    "fp8_head": Group(1, "--bf16 --fp8-format e4m3 --fp8-recipe tensorwise --fp8-output-proj"),
    "muon_again": Group(
        1,
        """--optimizer muon --muon-nesterov --muon-coefficient-type quintic --muon-scalar-optimizer adam
        --no-use-layer-wise-param-layout --ckpt-format torch --bf16""",
        needs="emerging-optimizers",
    ),
    "lion": Group(
        1,
        "--optimizer lion --lion-beta1 0.95 --lion-beta2 0.98 --ckpt-format torch",
        needs="emerging-optimizers",
    ),
    "soap": Group(
        1,
        "--optimizer soap --muon-scalar-optimizer adam --ckpt-format torch",
        needs="emerging-optimizers",
    ),
    "adaptive_muon": Group(
        1,
        "--optimizer adaptive_muon --muon-scalar-optimizer adam --ckpt-format torch --bf16",
        fails="has no attribute 'scale_mode'",  # 0.19 is written for 0.2 of the package, PyPI has 0.3.0
        needs="emerging-optimizers",
    ),
    "fsdp_dtypes": Group(
        2,
        """--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params --bf16
        --use-distributed-optimizer --ckpt-format fsdp_dtensor --no-gradient-accumulation-fusion
        --megatron-fsdp-main-params-dtype fp32 --megatron-fsdp-main-grads-dtype fp32
        --megatron-fsdp-grad-comm-dtype fp32 --fsdp-double-buffer --fsdp-db-use-persist-buf-on-alloc-fail
        --megatron-fsdp-max-pool-double-buffer""",
        environment=MANY_QUEUES,
    ),
    "fsdp_fine": Group(
        2,
        """--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params --bf16
        --use-distributed-optimizer --ckpt-format fsdp_dtensor --no-gradient-accumulation-fusion
        --megatron-fsdp-enable-fine-grained-param-gather""",
        environment=MANY_QUEUES,
    ),
    "accumulation": Group(
        1, "--bf16 --grad-reduce-in-bf16 --ddp-param-name-patterns-for-fp32-local-accumulation all"
    ),
    "weight_shards": Group(
        2,
        """--tensor-model-parallel-size 1 --tensor-parallel-num-weight-shards 2
        --expert-tensor-parallel-num-weight-shards 1""",
        fails="TransformerEngine >= 2.19",
    ),
    "save_logits": Group(
        1,
        """--logits-save-dir {tmp}/logits --logits-save-top-k 4 --logits-save-top-p 0.9
        --logits-save-top-p-min-k 1 --logits-save-dtype fp32 --bf16
        --save {tmp}/save --save-interval 1 --async-save --use-persistent-ckpt-worker
        --async-strategy mcore""",
        needs="zstandard",
        loss=False,
    ),
    "load_logits": Group(
        1,
        """--logits-load-dir {tmp}/logits --logits-load-decode-threads 1 --logits-load-prefetch-factor 1
        --logits-load-msc-prefetch-depth 1 --logits-load-kd-loss-alpha 0.5 --logits-load-ignore-errors
        --bf16""",  # float32 logits its losses overwrite, one after the other: on plain torch, too
        after="save_logits",
        needs="zstandard",
    ),
    "hybrid": Group(
        1,
        """--hybrid-layer-pattern M*-M --mamba-state-dim 16 --mamba-head-dim 16 --mamba-num-groups 2
        --mamba-num-heads 8 --bf16 --mamba-training-ssm-states-dtype fp32
        --mamba-inference-conv-states-dtype fp32 --mamba-inference-ssm-states-dtype fp32
        --spec megatron.core.models.hybrid.hybrid_layer_specs hybrid_stack_spec""",
        script="pretrain_hybrid.py",
        without=("num-layers",),
    ),
    "inference_since": Group(
        1,
        """--inference-dynamic-batching --inference-dynamic-batching-buffer-size-gb 1
        --inference-dynamic-batching-prefix-caching --num-speculative-tokens 0
        --inference-dynamic-batching-prefix-caching-eviction-policy lru
        --inference-dynamic-batching-prefix-caching-coordinator-policy longest_prefix
        --inference-dynamic-batching-prefix-caching-routing-alpha 0.5
        --inference-dynamic-batching-prefix-caching-mamba-gb 0.1
        --inference-dynamic-batching-cuda-graph-sizing-distribution linear
        --inference-dynamic-batching-sampling-backend torch
        --inference-dynamic-batching-async-sched-mode legacy
        --inference-dynamic-batching-logprobs-mode raw_logprobs
        --inference-dynamic-batching-track-generated-token-events
        --inference-dynamic-batching-mamba-memory-ratio 0.1 --inference-text-gen-server-logging
        --inference-use-synchronous-zmq-collectives --inference-disable-ep-consensus
        --use-same-sampling-seed-across-dp-ranks""",
    ),
    "inference_optimized": Group(
        1,
        """--transformer-impl inference_optimized --inference-grouped-gemm-backend torch
        --inference-disable-triton-nvls-kernels --inference-moe-disable-fused-quant-kernels
        --inference-moe-token-dispatcher-type nccl""",
        refused="transformer_engine",
    ),
    "inference_negated": Group(
        1,
        """--no-inference-dynamic-batching-prefix-caching --no-inference-text-gen-server-logging
        --no-inference-use-synchronous-zmq-collectives --no-inference-disable-ep-consensus""",
    ),
    "shards": Group(2, "--inference-shards tp=1,role=prefill+tp=1,role=decode"),
    "rl_since": Group(
        1,
        """--perform-rl-step --rl-generation-lag 0 --rl-submission-granularity B --rl-profile
        --rl-consumption-granularity B --rl-kv-cache-management-mode persist --no-rl-persist-cuda-graphs
        --rl-profile-dir {tmp}/profiles --rl-inference-parsers none --rl-persist-cuda-graphs""",
        refused="dynamic inference",
    ),
    "chat": Group(
        1, "--chat-template none --tokenizer-hf-no-use-fast --tokenizer-hf-no-include-special-tokens"
    ),
    "sentences": Group(1, "--no-tokenizer-sentencepiece-ignore-extra-whitespaces"),
    "sentences_negated": Group(1, "--disable-tokenizer-sentencepiece-ignore-extra-whitespaces"),
    "old_pattern": Group(1, "--mtp-hybrid-override-pattern M"),
    "zero_copy_experts": Group(
        2,
        MOE
        + """--moe-grouped-gemm --expert-model-parallel-size 2 --moe-token-dispatcher-type flex
        --moe-flex-dispatcher-backend ncclep --moe-ncclep-static-shape --moe-ncclep-zero-copy""",
    ),
}
ALL_GROUPS = GROUPS | NEW_GROUPS


def new_flags() -> list[str]:
    """The flags of the list."""
    return NEW_FLAGS.read_text().split()
