#!/usr/bin/env bash
# Two ranks share every layer, and the sequence between layers; see llama3.sh.
NPROC=2 exec "$(dirname "$0")/llama3.sh" --tensor-model-parallel-size 2 --sequence-parallel "$@"
