#!/usr/bin/env bash
# FSDP: llama3.sh with weights, gradients and optimizer sharded over all ranks (Megatron FSDP), nothing else parallel.
#   [SIZE=small|8b|70b] [NPROC=2] examples/fsdp.sh [FLAGS of Megatron-LM that add to or replace those below]
set -euo pipefail
export SIZE="${SIZE:-small}"
# FSDP overlaps by itself; the variable's queues of one would serialise it.
export CUDA_DEVICE_MAX_CONNECTIONS=8
FLAGS=(
    --use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params --use-distributed-optimizer
    --no-gradient-accumulation-fusion --ckpt-format fsdp_dtensor --init-model-with-meta-device
)
case "$SIZE" in
    small | 8b | 70b) ;;
    *)
        echo "$0: there is no size '$SIZE': set SIZE to one of small 8b 70b" >&2
        exit 1
        ;;
esac
if [ "$SIZE" = small ]; then
    export NPROC="${NPROC:-2}"
else
    # Whole layers are computed again: nothing but the batch shares their activations.
    FLAGS+=(--recompute-granularity full --recompute-method uniform --recompute-num-layers 1)
    export RECIPE_LAYOUT=""
fi
exec "$(dirname "$0")/llama3.sh" "${FLAGS[@]}" "$@"
