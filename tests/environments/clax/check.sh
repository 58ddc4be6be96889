#!/usr/bin/env bash
# Our click models against those of clax-models, on the same pages.
#   check.sh WORKDIR      of a finished quickstart, which is not looked at
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
export JAX_PLATFORMS=cpu PYTHONPATH="$here/../../.."
python "$here/check.py"
