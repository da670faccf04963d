#!/usr/bin/env bash
# Long context: llama3.sh with its sequences cut over ranks (context parallelism, ring attention).
#   [SIZE=small|8b|70b] [NPROC=2] examples/long_context.sh [FLAGS of Megatron-LM that add to or replace those below]
# small takes two ranks; 8b and 70b extend the Llama 3 that LOAD names to 131,072 tokens, as 3.1 did.
set -euo pipefail
. "$(dirname "$0")/train.sh"
FLAGS=(
    --seq-length 131072 --max-position-embeddings 131072 --use-rope-scaling --rope-scaling-factor 8
    --train-iters 2000 --lr 2e-5 --min-lr 2e-6 --finetune --exit-on-missing-checkpoint
)
case "$SIZE" in
    small)
        export NPROC="${NPROC:-2}"
        FLAGS=(--context-parallel-size 2 --seq-length 1024 --max-position-embeddings 1024 --micro-batch-size 1)
        FLAGS+=(--global-batch-size 2)
        ;;
    8b)
        export RECIPE_CARDS=64 RECIPE_LAYOUT="--tensor-model-parallel-size 4 --context-parallel-size 8"
        FLAGS+=(--global-batch-size 32)
        ;;
    70b)
        export RECIPE_CARDS=512
        export RECIPE_LAYOUT="--tensor-model-parallel-size 8 --pipeline-model-parallel-size 4 --context-parallel-size 16"
        FLAGS+=(--num-layers-per-virtual-pipeline-stage 5 --global-batch-size 32)
        ;;
    *) unknown_size 8b 70b ;;
esac
[ "$SIZE" = small ] || FLAGS+=(--load "${LOAD:?the folder that --save of the first run named}")
exec "$(dirname "$0")/llama3.sh" "${FLAGS[@]}" "$@"
