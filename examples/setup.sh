# Sourced by train.sh and tests/run.sh: makes an environment with the project in it, once, and activates it.
#   [PYTHON=python3.11] . examples/setup.sh
# Python 3.12, wherever it is found, gets .venv and the newest Megatron-Core, whose wheel has the trainer; 3.10 and
# 3.11 get .venv-3.10, .venv-3.11 and Megatron-Core 0.16. A finished environment is recognised by its .ready, the
# checksum of what it was made from. What examples and tests need is installed at once: the build takes minutes.

ROOT="$(CDPATH= cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
MAIN=3.12

version_of() { # COMMAND -> 3.12
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null
}

usable() { # COMMAND: it makes environments, and extensions can be compiled for it
    "$1" -c 'import ensurepip, os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2> /dev/null
}

find_python() { # VERSION -> the first usable interpreter of it: on PATH, pyenv's, uv's
    local candidate
    for candidate in "python$1" python3 python "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python \
        "$(uv python find --no-project "$1" 2> /dev/null)"; do
        [ "$(version_of "$candidate")" = "$1" ] || continue
        usable "$candidate" && echo "$candidate" && return
        echo "$candidate lacks venv or Python.h (Debian: python$1-venv, python$1-dev): looking further" >&2
    done
    return 1
}

choose_python() { # sets PYTHON and VERSION
    if [ -z "${PYTHON:-}" ]; then
        PYTHON="$(find_python $MAIN || find_python 3.11 || find_python 3.10)"
    fi
    VERSION="$(version_of "${PYTHON:-false}")"
    case "$VERSION" in
        3.10 | 3.11 | 3.12) ;;
        *)
            echo "${PYTHON:-python3} is not Python $MAIN, nor 3.11, 3.10: install it (apt install python3.12-venv" \
                "python3.12-dev, uv python install 3.12 or pyenv install 3.12), or set PYTHON to one" >&2
            return 1
            ;;
    esac
}

has_trainer() { # fails where the examples find no trainer
    [ "$VERSION" = $MAIN ] || [ -f "${MEGATRON_LM_PATH:-}/pretrain_gpt.py" ] && return
    echo "Megatron-Core for Python $VERSION comes without a trainer: install Python $MAIN (apt install" \
        "python3.12-venv, uv python install 3.12 or pyenv install 3.12), or set MEGATRON_LM_PATH to a checkout" \
        "(git clone --depth 1 -b core_v0.16.1 https://github.com/NVIDIA/Megatron-LM)" >&2
    return 1
}

set_up() {
    local venv="$ROOT/.venv" sources
    [ "$VERSION" = $MAIN ] || venv="$ROOT/.venv-$VERSION"
    sources="$VERSION $(cd "$ROOT" && find setup.py pyproject.toml bridge/config/compat.py csrc -type f | sort \
        | xargs cksum | cksum)"
    if [ "$(cat "$venv/.ready" 2> /dev/null)" = "$sources" ]; then
        . "$venv/bin/activate"
        return
    fi
    if ! "$PYTHON" -c 'import ensurepip' 2> /dev/null; then
        echo "$PYTHON cannot make virtual environments: install its venv package (Debian: python$VERSION-venv)" >&2
        return 1
    fi
    if [ ! -f "$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ]; then
        echo "$PYTHON has no Python.h to compile with: install its headers (Debian: python$VERSION-dev)" >&2
        return 1
    fi
    if ! command -v g++ > /dev/null; then
        echo "there is no C++ compiler: install one (Debian: g++)" >&2
        return 1
    fi
    if [ "$(version_of "$venv/bin/python")" != "$VERSION" ]; then
        "$PYTHON" -m venv --clear "$venv" || return 1
    fi
    . "$venv/bin/activate"
    # One copy of torch serves the build and the run: with build isolation pip would fetch a second one.
    python -m pip install --quiet --upgrade pip 'setuptools>=77' wheel ninja 'pybind11>=2.13' \
        'numpy<2' 'torch==2.13.*' || return 1
    python -m pip install --quiet --no-build-isolation --editable "$ROOT[examples,test]" || return 1
    echo "$sources" > "$venv/.ready"
}

choose_python && { [ -z "${NEEDS_TRAINER:-}" ] || has_trainer; } && set_up || exit 1
