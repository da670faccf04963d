#!/usr/bin/env bash
# Two ranks hold half of the layers each; see llama.sh.
NPROC=2 exec "$(dirname "$0")/llama.sh" --pipeline-model-parallel-size 2 "$@"
