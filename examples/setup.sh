# Sourced by the other scripts: makes .venv with the project in it, once, and activates it.
#   . examples/setup.sh
# A finished set-up is recognised by .venv/.ready, which holds the checksum of what it was made from. What the
# recipe and the tests need is installed at once: the build, which takes minutes, is then done once.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="${PYTHON:-python3}"

set_up() {
    local mark="$ROOT/.venv/.ready" sources
    sources="$(cd "$ROOT" && find setup.py pyproject.toml csrc -type f | sort | xargs cksum | cksum)"
    if [ -f "$mark" ] && [ "$(cat "$mark")" = "$sources" ]; then
        . "$ROOT/.venv/bin/activate"
        return
    fi
    if ! "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'; then
        echo "$PYTHON is not Python 3.10 - 3.12: set PYTHON to one that is" >&2
        return 1
    fi
    if ! "$PYTHON" -c 'import ensurepip' 2> /dev/null; then
        echo "$PYTHON cannot make virtual environments: install its venv package (Debian: python3-venv)" >&2
        return 1
    fi
    if ! command -v g++ > /dev/null; then
        echo "there is no C++ compiler: install one (Debian: g++)" >&2
        return 1
    fi
    [ -x "$ROOT/.venv/bin/python" ] || "$PYTHON" -m venv "$ROOT/.venv" || return 1
    . "$ROOT/.venv/bin/activate"
    # One copy of torch serves the build and the run: with build isolation pip would fetch a second one.
    python -m pip install --quiet --upgrade pip 'setuptools>=77' wheel ninja 'pybind11>=2.13' \
        'numpy<2' 'torch==2.13.*' || return 1
    python -m pip install --quiet --no-build-isolation --editable "$ROOT[recipe,test]" || return 1
    echo "$sources" > "$mark"
}

set_up || exit 1

# What a training script uses: data made once, and the command that starts NPROC processes (default 1).
cd "$ROOT"
DATA=(
    --data-path runs/data/stdlib --split 95,5,0
    --tokenizer-type HuggingFaceTokenizer --tokenizer-model runs/data/tokenizer
    --no-create-attention-mask-in-dataloader --num-workers 0
)
START=(python)
[ "${NPROC:-1}" -eq 1 ] || START=(torchrun --standalone --nproc-per-node "$NPROC")
# Waiting threads of torch's and of MindSpore's pool must not spin on cores that the other pool needs.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"

prepare_data() {
    python examples/prepare_data.py --output-dir runs/data --vocab-size 4096
}
