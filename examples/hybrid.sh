#!/usr/bin/env bash
# Hybrid: Mamba-2 layers (M), a few of attention (*) and MLPs (-), as in "An Empirical Study of Mamba-based Language
# Models" (Waleffe et al. 2024), whose 8 B model has 24 M, 4 * and 28 -. Needs Megatron-Core 0.19.
#   [SIZE=small|8b] [NPROC=2] examples/hybrid.sh [FLAGS of Megatron-LM that add to or replace those below]
set -euo pipefail
. "$(dirname "$0")/train.sh"
MODEL=(
    --normalization RMSNorm --position-embedding-type none --disable-bias-linear --squared-relu
    --untie-embeddings-and-output-weights --attention-dropout 0 --hidden-dropout 0 --group-query-attention
)
case "$SIZE" in
    small)
        # The pattern has the layers.
        SMALL=("${SMALL[@]:2}")
        MODEL+=(
            "${SMALL[@]}" --hybrid-layer-pattern 'M-M*-M-' --ffn-hidden-size 704 --num-query-groups 4
            --mamba-state-dim 32 --mamba-head-dim 32 --mamba-num-groups 2
        )
        ;;
    8b) CARDS=32 MODEL+=(
        "${FULL[@]}" --hybrid-layer-pattern 'M-M-M--M-M*-M-M-M-M--M*-M-M-M-M-M*--M-M-M-M-M*-M--M-M-M-'
        --hidden-size 4096 --ffn-hidden-size 16384 --num-attention-heads 32 --num-query-groups 8 --kv-channels 128
        --mamba-state-dim 128 --mamba-head-dim 64 --mamba-num-groups 8
        --seq-length 4096 --max-position-embeddings 4096 --tensor-model-parallel-size 4
        --micro-batch-size 4 --global-batch-size 1024 --lr 1.6e-4 --min-lr 1.6e-5
    ) ;;
    *) unknown_size 8b ;;
esac
train "${MODEL[@]}" "$@"
