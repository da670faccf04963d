#!/usr/bin/env bash
# Long context: llama3.sh with its sequences cut over ranks (context parallelism, ring attention).
#   [SIZE=small|8b|70b] [NPROC=2] examples/long_context.sh [FLAGS of Megatron-LM that add to or replace those below]
# small takes two ranks; 8b and 70b extend a Llama 3 to 131,072 tokens, as 3.1 did: --load names it.
set -euo pipefail
export SIZE="${SIZE:-small}"
FLAGS=(
    --seq-length 131072 --max-position-embeddings 131072 --use-rope-scaling --rope-scaling-factor 8
    --train-iters 2000 --lr 2e-5 --min-lr 2e-6 --finetune
)
case "$SIZE" in
    small)
        export NPROC="${NPROC:-2}"
        FLAGS=(--context-parallel-size 2 --seq-length 1024 --max-position-embeddings 1024 --micro-batch-size 1)
        FLAGS+=(--global-batch-size 2)
        ;;
    8b)
        export CARDS=64 LAYOUT="--tensor-model-parallel-size 4 --context-parallel-size 8"
        FLAGS+=(--global-batch-size 32)
        ;;
    70b)
        export CARDS=512
        export LAYOUT="--tensor-model-parallel-size 8 --pipeline-model-parallel-size 4 --context-parallel-size 16"
        FLAGS+=(--num-layers-per-virtual-pipeline-stage 5 --global-batch-size 32)
        ;;
esac
exec "$(dirname "$0")/llama3.sh" "${FLAGS[@]}" "$@"
