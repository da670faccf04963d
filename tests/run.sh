#!/usr/bin/env bash
# Sets everything up and runs the tests.
#   tests/run.sh [arguments of pytest]
# Needs Python 3.12 and g++; PYTHON=python3.11 tests/run.sh tests with Megatron-Core 0.16. Running it again keeps the
# set-up.
set -euo pipefail
cd "$(dirname "$0")/.."
. examples/setup.sh
exec python -m pytest -q "$@"
