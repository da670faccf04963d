#!/usr/bin/env bash
# Sets everything up, trains a small GPT on the standard library's sources, plots its loss, prints a sample and
# what ran where.
#   examples/quickstart.sh [FLAGS of Megatron-LM that add to or replace those of llama3.sh]
# Needs g++ and Python 3.12 (or 3.10, 3.11 and a Megatron-LM checkout). Running it again trains anew; set-up and
# data are kept.
set -euo pipefail
. "$(dirname "$0")/train.sh"
RUN=runs/quickstart
rm -rf "$RUN"
mkdir -p "$RUN"
MINDSPEED_MS_COVERAGE="$RUN/coverage.json" "$ROOT/examples/llama3.sh" \
    --save "$RUN/checkpoints" --tensorboard-dir "$RUN/tensorboard" "$@" | tee "$RUN/log.txt"
mindspeed-ms plot "$RUN/log.txt" --output "$RUN/loss.png"
mindspeed-ms generate --load "$RUN/checkpoints" --prompt $'def read_file(path):\n' --tokens 64 --top-k 5
mindspeed-ms coverage "$RUN/coverage.json"
