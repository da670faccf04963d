#!/usr/bin/env bash
# Mixtral: Llama with eight experts a layer, two of them for each token.
#   [SIZE=small|8x7b|8x22b] [NPROC=2] examples/mixtral.sh [FLAGS of Megatron-LM that add to or replace those below]
set -euo pipefail
. "$(dirname "$0")/train.sh"
MODEL=(
    "${LLAMA[@]}" $UNTIED --group-query-attention
    --num-experts 8 --moe-router-topk 2 --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-2
    --moe-token-dispatcher-type alltoall --moe-grouped-gemm --moe-permute-fusion --moe-router-dtype fp32
)
case "$SIZE" in
    small) MODEL+=("${SMALL[@]}" --ffn-hidden-size 352 --num-query-groups 4) ;;
    8x7b) CARDS=64 MODEL+=(
        --num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32
        --pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 4
        --expert-model-parallel-size 8 --micro-batch-size 1 --global-batch-size 1024 --lr 1e-4 --min-lr 1e-5
    ) ;;
    8x22b) CARDS=128 MODEL+=(
        --num-layers 56 --hidden-size 6144 --ffn-hidden-size 16384 --num-attention-heads 48
        --tensor-model-parallel-size 2 --pipeline-model-parallel-size 8 --num-layers-per-virtual-pipeline-stage 1
        --expert-model-parallel-size 8 --expert-tensor-parallel-size 1
        --micro-batch-size 1 --global-batch-size 1024 --lr 1e-4 --min-lr 1e-5 --recompute-granularity selective
    ) ;;
    *) unknown_size 8x7b 8x22b ;;
esac
[ "$SIZE" = small ] || MODEL+=(
    "${FULL[@]}" --num-query-groups 8 --seq-length 4096 --max-position-embeddings 32768
    --rotary-base 1000000 --norm-epsilon 1e-5
)
train "${MODEL[@]}" "$@"
