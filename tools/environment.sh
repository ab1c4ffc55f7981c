# Sourced by the scripts beside it: from the checkout's root, an activated .venv with the pinned versions of constraints.txt.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

python_of() {
    for candidate in python3.11 python3.12 python3.13 python3 python; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

prepare() { # prepare EXTRAS: make the environment if there is none, install what changed
    local extras="$1" stamp=".venv/.installed-${1:-plain}"
    if [ ! -x .venv/bin/python ]; then
        local python
        python="$(python_of)"
        if [ -z "$python" ]; then
            echo "error: Python 3.11 or newer is needed, and none was found on PATH" >&2
            exit 3
        fi
        echo "Making a virtual environment in .venv with $("$python" --version)"
        "$python" -m venv .venv || exit 3
    fi
    # shellcheck disable=SC1091
    . .venv/bin/activate
    if [ ! -f "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ constraints.txt -nt "$stamp" ]; then
        echo "Installing sddit${extras:+[$extras]} and its pinned dependencies"
        # torch first and by itself: pinned, it is the version that was tested, and nothing later replaces it
        pip install --quiet --disable-pip-version-check -c constraints.txt torch || exit 3
        pip install --quiet --disable-pip-version-check -c constraints.txt -e ".${extras:+[$extras]}" || exit 3
        touch "$stamp"
    fi
}
