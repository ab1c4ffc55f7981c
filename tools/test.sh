#!/usr/bin/env bash
# Install and test: style, types, then the suite on all cores. Further words go to pytest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare dev
ruff check .
ruff format --check .
mypy
export OMP_NUM_THREADS=1 # one thread for each of pytest's processes
exec pytest -q -n auto "$@"
