#!/usr/bin/env bash
# The Llama-style model in bfloat16 with fp32 master weights; see llama.sh.
exec "$(dirname "$0")/llama.sh" --bf16 "$@"
