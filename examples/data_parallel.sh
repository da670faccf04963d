#!/usr/bin/env bash
# Two ranks train on half of each batch and hold half of the optimizer state; see llama3.sh.
NPROC=2 exec "$(dirname "$0")/llama3.sh" --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather "$@"
