#!/usr/bin/env bash
# Qwen3: Llama with norms of queries and keys, heads wider than hidden size / heads, tied embeddings when small.
#   [SIZE=small|0.6b|8b|32b] [NPROC=2] examples/qwen3.sh [FLAGS of Megatron-LM that add to or replace those below]
set -euo pipefail
. "$(dirname "$0")/train.sh"
MODEL=("${LLAMA[@]}" --group-query-attention --qk-layernorm)
case "$SIZE" in
    small) MODEL+=("${SMALL[@]}" --ffn-hidden-size 704 --num-query-groups 4 --kv-channels 64) ;;
    0.6b) CARDS=8 MODEL+=(
        --num-layers 28 --hidden-size 1024 --ffn-hidden-size 3072 --num-attention-heads 16
        --micro-batch-size 4 --global-batch-size 512 --lr 6e-4 --min-lr 6e-5
    ) ;;
    8b) CARDS=16 MODEL+=(
        --num-layers 36 --hidden-size 4096 --ffn-hidden-size 12288 --num-attention-heads 32
        $UNTIED --tensor-model-parallel-size 2
        --micro-batch-size 1 --global-batch-size 512 --lr 3e-4 --min-lr 3e-5 --recompute-granularity selective
    ) ;;
    32b) CARDS=64 MODEL+=(
        --num-layers 64 --hidden-size 5120 --ffn-hidden-size 25600 --num-attention-heads 64
        $UNTIED --tensor-model-parallel-size 8
        --pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 8
        --micro-batch-size 1 --global-batch-size 1024 --lr 2e-4 --min-lr 2e-5 --recompute-granularity selective
    ) ;;
    *) unknown_size 0.6b 8b 32b ;;
esac
[ "$SIZE" = small ] || MODEL+=(
    "${FULL[@]}" --num-query-groups 8 --kv-channels 128 --seq-length 4096 --max-position-embeddings 40960
    --rotary-base 1000000 --norm-epsilon 1e-6
)
train "${MODEL[@]}" "$@"
