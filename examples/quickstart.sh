#!/usr/bin/env bash
# Sets everything up, trains a small GPT on the standard library's sources, prints a sample and what ran where.
#   examples/quickstart.sh [FLAGS of pretrain_gpt.py that add to or replace those below]
# Needs Python 3.10 - 3.12 and g++. Running it again trains anew; set-up and data are kept.
set -euo pipefail
cd "$(dirname "$0")/.."
. examples/setup.sh recipe

RUN=runs/quickstart
mkdir -p "$RUN"
python examples/prepare_data.py --output-dir runs/data --vocab-size 4096

# Waiting threads of torch's and MindSpore's pools must not spin on the cores that the other pool needs.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
export MINDSPEED_MS_COVERAGE="$RUN/coverage.json"
python examples/pretrain_gpt.py \
    --num-layers 4 --hidden-size 256 --ffn-hidden-size 704 --num-attention-heads 8 \
    --group-query-attention --num-query-groups 4 \
    --swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear \
    --untie-embeddings-and-output-weights --attention-dropout 0 --hidden-dropout 0 \
    --seq-length 256 --max-position-embeddings 256 \
    --micro-batch-size 4 --global-batch-size 8 --train-iters 200 \
    --lr 2e-3 --min-lr 2e-4 --lr-decay-style cosine --lr-warmup-iters 20 \
    --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0 --init-method-std 0.02 \
    --data-path runs/data/stdlib --split 95,5,0 \
    --tokenizer-type HuggingFaceTokenizer --tokenizer-model runs/data/tokenizer \
    --no-create-attention-mask-in-dataloader --num-workers 0 \
    --log-interval 10 --eval-interval 100 --eval-iters 4 \
    --save "$RUN/checkpoints" --save-interval 100 \
    --tensorboard-dir "$RUN/tensorboard" --report-dir "$RUN" \
    --prompt $'def read_file(path):\n' --prompt-tokens 64 --prompt-top-k 5 \
    "$@"
mindspeed-ms coverage "$RUN/coverage.json"
