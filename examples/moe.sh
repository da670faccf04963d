#!/usr/bin/env bash
# The Llama-style model with four experts a layer, two ranks holding two each; see llama.sh.
NPROC=2 exec "$(dirname "$0")/llama.sh" --num-experts 4 --moe-router-topk 2 --moe-aux-loss-coeff 1e-2 \
    --moe-token-dispatcher-type alltoall --expert-model-parallel-size 2 "$@"
