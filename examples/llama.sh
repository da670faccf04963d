#!/usr/bin/env bash
# A small Llama-style model: RMSNorm, RoPE, SwiGLU, grouped queries, no biases, untied embeddings.
#   [NPROC=2] examples/llama.sh [FLAGS of Megatron-LM that add to or replace those below]
set -euo pipefail
. "$(dirname "$0")/train.sh"
train \
    --num-layers 4 --hidden-size 256 --ffn-hidden-size 704 --num-attention-heads 8 \
    --group-query-attention --num-query-groups 4 \
    --swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear \
    --untie-embeddings-and-output-weights --attention-dropout 0 --hidden-dropout 0 \
    --seq-length 256 --max-position-embeddings 256 \
    --micro-batch-size 4 --global-batch-size 8 --train-iters 200 \
    --lr 2e-3 --min-lr 2e-4 --lr-decay-style cosine --lr-warmup-iters 20 \
    --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0 --init-method-std 0.02 \
    --log-interval 10 --eval-interval 100 --eval-iters 4 "$@"
