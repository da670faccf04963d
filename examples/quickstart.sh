#!/usr/bin/env bash
# Sets everything up, trains a small GPT on the standard library's sources, prints a sample and what ran where.
#   examples/quickstart.sh [FLAGS of pretrain_gpt.py that add to or replace those of llama.sh]
# Needs Python 3.10 - 3.12 and g++. Running it again trains anew; set-up and data are kept.
set -euo pipefail
. "$(dirname "$0")/setup.sh"
RUN=runs/quickstart
mkdir -p "$RUN"
MINDSPEED_MS_COVERAGE="$RUN/coverage.json" examples/llama.sh \
    --save "$RUN/checkpoints" --save-interval 100 \
    --tensorboard-dir "$RUN/tensorboard" --report-dir "$RUN" \
    --prompt $'def read_file(path):\n' --prompt-tokens 64 --prompt-top-k 5 \
    "$@"
mindspeed-ms coverage "$RUN/coverage.json"
