#!/usr/bin/env bash
# Fine-tuning: takes the weights of a checkpoint, not its optimizer, schedule and data, and goes on with a low rate.
#   LOAD=runs/quickstart/checkpoints [SIZE=small|8b|70b] [NPROC=2] examples/finetune.sh [FLAGS that add or replace]
# LOAD is what --save named in a run of llama3.sh of that size. Data as there, or --data-path.
set -euo pipefail
: "${LOAD:?the folder that --save of the first run named}"
exec "$(dirname "$0")/llama3.sh" --load "$LOAD" --finetune --exit-on-missing-checkpoint --lr 1e-5 --min-lr 0 --lr-warmup-fraction 0.03 \
    --lr-decay-style linear --train-iters 100 "$@"
