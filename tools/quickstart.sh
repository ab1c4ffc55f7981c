#!/usr/bin/env bash
# Install and train: SD-DiT on handwritten digits, from nothing to a report. Further words are overrides of the recipe.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare ""
exec sddit-run recipes/quickstart.toml "$@"
