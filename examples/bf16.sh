#!/usr/bin/env bash
# The Llama-style model in bfloat16 with fp32 master weights; see llama3.sh.
exec "$(dirname "$0")/llama3.sh" --bf16 "$@"
