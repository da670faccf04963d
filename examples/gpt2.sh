#!/usr/bin/env bash
# A small GPT-2-style model: LayerNorm, learned positions, GELU, dropout, tied embeddings.
#   [NPROC=2] examples/gpt2.sh [FLAGS of Megatron-LM that add to or replace those below]
set -euo pipefail
. "$(dirname "$0")/train.sh"
train \
    --num-layers 4 --hidden-size 256 --num-attention-heads 8 \
    --seq-length 256 --max-position-embeddings 256 \
    --micro-batch-size 4 --global-batch-size 8 --train-iters 200 \
    --lr 1e-3 --min-lr 1e-4 --lr-decay-style cosine --lr-warmup-fraction 0.1 \
    --weight-decay 0.1 --clip-grad 1.0 \
    --log-interval 10 --eval-interval 100 --eval-iters 4 "$@"
