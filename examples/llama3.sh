#!/usr/bin/env bash
# Llama 3: RMSNorm, rotary positions, SwiGLU, grouped queries, no biases.
#   [SIZE=small|8b|70b|405b] [NPROC=2] examples/llama3.sh [FLAGS of Megatron-LM that add to or replace those below]
# Recipes that call this one may set RECIPE_CARDS, and RECIPE_LAYOUT to the flags of another parallel layout.
set -euo pipefail
. "$(dirname "$0")/train.sh"
MODEL=("${LLAMA[@]}" $UNTIED --group-query-attention)
case "$SIZE" in
    small) MODEL+=("${SMALL[@]}" --ffn-hidden-size 704 --num-query-groups 4) ;;
    8b)
        CARDS=${RECIPE_CARDS:-8} LAYOUT=${RECIPE_LAYOUT---tensor-model-parallel-size 2}
        MODEL+=(
            --num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32
            --global-batch-size 512 --lr 3e-4 --min-lr 3e-5
        )
        ;;
    70b)
        CARDS=${RECIPE_CARDS:-128}
        LAYOUT=${RECIPE_LAYOUT---tensor-model-parallel-size 8 --pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 5}
        MODEL+=(
            --num-layers 80 --hidden-size 8192 --ffn-hidden-size 28672 --num-attention-heads 64
            --global-batch-size 1024 --lr 1.5e-4 --min-lr 1.5e-5
        )
        ;;
    405b)
        CARDS=${RECIPE_CARDS:-1024}
        # 126 layers, embedding and head make 128 places in 64 stages.
        LAYOUT=${RECIPE_LAYOUT---tensor-model-parallel-size 8 --context-parallel-size 2 --pipeline-model-parallel-size 16 --num-virtual-stages-per-pipeline-rank 4
            --account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split}
        MODEL+=(
            --num-layers 126 --hidden-size 16384 --ffn-hidden-size 53248 --num-attention-heads 128
            --global-batch-size 2048 --lr 8e-5 --min-lr 8e-7
        )
        ;;
    *) unknown_size 8b 70b 405b ;;
esac
# shellcheck disable=SC2206 # LAYOUT is a list of words
[ "$SIZE" = small ] || MODEL+=(
    "${FULL[@]}" $LAYOUT --num-query-groups 8 --seq-length 8192 --max-position-embeddings 8192
    --rotary-base 500000 --norm-epsilon 1e-5 --micro-batch-size 1 --recompute-granularity selective
)
train "${MODEL[@]}" "$@"
