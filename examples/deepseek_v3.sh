#!/usr/bin/env bash
# DeepSeek-V3: latent attention, shared and routed experts by sigmoid scores and a balancing bias, first layers
# dense, one more token predicted.
#   [SIZE=small|671b] [NPROC=2] examples/deepseek_v3.sh [FLAGS of Megatron-LM that add to or replace those below]
set -euo pipefail
. "$(dirname "$0")/train.sh"
MODEL=(
    "${LLAMA[@]}" $UNTIED --multi-latent-attention --qk-layernorm --mtp-num-layers 1 --mtp-loss-scaling-factor 0.1
    --moe-router-score-function sigmoid --moe-router-enable-expert-bias --moe-router-bias-update-rate 1e-3
    --moe-router-load-balancing-type seq_aux_loss --moe-aux-loss-coeff 1e-4 --moe-router-topk-scaling-factor 2.5
    --moe-token-dispatcher-type alltoall --moe-grouped-gemm --moe-permute-fusion --moe-router-dtype fp32
)
case "$SIZE" in
    small) MODEL+=(
        "${SMALL[@]}" --ffn-hidden-size 704 --moe-layer-freq '([0]*1+[1]*3)' --num-experts 8 --moe-router-topk 2
        --moe-ffn-hidden-size 128 --moe-shared-expert-intermediate-size 128
        --moe-router-num-groups 4 --moe-router-group-topk 2
        --q-lora-rank 96 --kv-lora-rank 64 --qk-head-dim 32 --qk-pos-emb-head-dim 16 --v-head-dim 32
    ) ;;
    # 61 layers and the predictor of the second token: sixteen stages of four, the first three of them dense.
    671b) CARDS=1024 MODEL+=(
        "${FULL[@]}" --num-layers 61 --hidden-size 7168 --ffn-hidden-size 18432 --num-attention-heads 128
        --moe-layer-freq '([0]*3+[1]*58)' --num-experts 256 --moe-router-topk 8
        --moe-ffn-hidden-size 2048 --moe-shared-expert-intermediate-size 2048
        --moe-router-num-groups 8 --moe-router-group-topk 4
        --q-lora-rank 1536 --kv-lora-rank 512 --qk-head-dim 128 --qk-pos-emb-head-dim 64 --v-head-dim 128
        --seq-length 4096 --max-position-embeddings 4096 --rotary-base 10000 --rotary-scaling-factor 40
        --mscale 1.0 --mscale-all-dim 1.0 --norm-epsilon 1e-6
        --tensor-model-parallel-size 2 --pipeline-model-parallel-size 16 --expert-model-parallel-size 32
        --expert-tensor-parallel-size 1 --pipeline-model-parallel-layout 'Et*3|(t*4|)*14,t*2mL'
        --recompute-granularity selective --recompute-modules mla_up_proj layernorm moe_act
        --micro-batch-size 1 --global-batch-size 8192 --lr 2.2e-4 --min-lr 2.2e-5
    ) ;;
    *) unknown_size 671b ;;
esac
train "${MODEL[@]}" "$@"
