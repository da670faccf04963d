#!/usr/bin/env bash
# Qwen3-MoE: Qwen3 with many small experts, eight of them for each token, weights renormalised.
#   [SIZE=small|30b-a3b|235b-a22b] [NPROC=2] examples/qwen3_moe.sh [FLAGS of Megatron-LM that add or replace]
set -euo pipefail
. "$(dirname "$0")/train.sh"
# Softmax over the chosen logits is softmax over all of them, renormalised (norm_topk_prob of the published models).
MODEL=(
    "${LLAMA[@]}" $UNTIED --group-query-attention --num-query-groups 4 --qk-layernorm
    --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-3
    --moe-token-dispatcher-type alltoall --moe-grouped-gemm --moe-permute-fusion --moe-router-dtype fp32
)
case "$SIZE" in
    small) MODEL+=(
        "${SMALL[@]}" --kv-channels 64 --num-experts 16 --moe-router-topk 4 --moe-ffn-hidden-size 96
        --ffn-hidden-size 704
    ) ;;
    30b-a3b) CARDS=32 MODEL+=(
        --num-layers 48 --hidden-size 2048 --ffn-hidden-size 6144 --moe-ffn-hidden-size 768 --num-attention-heads 32
        --pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 6
        --expert-model-parallel-size 8 --micro-batch-size 1 --global-batch-size 1024 --lr 3e-4 --min-lr 3e-5
    ) ;;
    # 94 layers, embedding and head make 96 places.
    235b-a22b) CARDS=256 MODEL+=(
        --num-layers 94 --hidden-size 4096 --ffn-hidden-size 12288 --moe-ffn-hidden-size 1536 --num-attention-heads 64
        --tensor-model-parallel-size 4 --pipeline-model-parallel-size 8 --num-virtual-stages-per-pipeline-rank 4
        --account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split
        --expert-model-parallel-size 8 --expert-tensor-parallel-size 1
        --micro-batch-size 1 --global-batch-size 2048 --lr 2e-4 --min-lr 2e-5 --recompute-granularity selective
    ) ;;
    *) unknown_size 30b-a3b 235b-a22b ;;
esac
[ "$SIZE" = small ] || MODEL+=(
    "${FULL[@]}" --num-experts 128 --moe-router-topk 8 --kv-channels 128
    --seq-length 4096 --max-position-embeddings 40960 --rotary-base 1000000 --norm-epsilon 1e-6
)
train "${MODEL[@]}" "$@"
