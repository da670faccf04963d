#!/usr/bin/env bash
# Two ranks hold half of the layers each; see llama3.sh.
NPROC=2 exec "$(dirname "$0")/llama3.sh" --pipeline-model-parallel-size 2 "$@"
