#!/usr/bin/env bash
# GPT-2: LayerNorm, learned positions, GELU, dropout, biases, tied embeddings.
#   [SIZE=small|124m|1.5b] [NPROC=2] examples/gpt2.sh [FLAGS of Megatron-LM that add to or replace those below]
set -euo pipefail
. "$(dirname "$0")/train.sh"
case "$SIZE" in
    small) MODEL=("${SMALL[@]}" --lr 1e-3 --min-lr 1e-4 --adam-beta2 0.999) ;;
    124m) CARDS=8 MODEL=(
        "${FULL[@]}" --num-layers 12 --hidden-size 768 --num-attention-heads 12
        --lr 6e-4 --min-lr 6e-5 --micro-batch-size 16 --global-batch-size 512
    ) ;;
    1.5b) CARDS=32 MODEL=(
        "${FULL[@]}" --num-layers 48 --hidden-size 1600 --num-attention-heads 25
        --lr 2e-4 --min-lr 2e-5 --micro-batch-size 8 --global-batch-size 512
    ) ;;
    *) unknown_size 124m 1.5b ;;
esac
[ "$SIZE" = small ] || MODEL+=(--seq-length 1024 --max-position-embeddings 1024)
train "${MODEL[@]}" "$@"
