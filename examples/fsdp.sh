#!/usr/bin/env bash
# FSDP: llama3.sh with weights, gradients and optimizer sharded over all ranks (Megatron FSDP), nothing else parallel.
#   [SIZE=small|8b|70b] [NPROC=2] examples/fsdp.sh [FLAGS of Megatron-LM that add to or replace those below]
set -euo pipefail
. "$(dirname "$0")/train.sh"
# FSDP overlaps by itself; the variable's queues of one would serialise it.
export CUDA_DEVICE_MAX_CONNECTIONS=8
FLAGS=(
    --use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params --use-distributed-optimizer
    --no-gradient-accumulation-fusion --ckpt-format fsdp_dtensor --init-model-with-meta-device
)
case "$SIZE" in
    small) export NPROC="${NPROC:-2}" ;;
    8b | 70b)
        # Whole layers are computed again: nothing but the batch shares their activations.
        FLAGS+=(--recompute-granularity full --recompute-method uniform --recompute-num-layers 1)
        export RECIPE_LAYOUT=""
        ;;
    *) unknown_size 8b 70b ;;
esac
exec "$(dirname "$0")/llama3.sh" "${FLAGS[@]}" "$@"
