#!/usr/bin/env bash
# The click rules by Apache Beam, on one process and on two, against DuckDB.
#   check.sh WORKDIR      of a finished quickstart, which is not looked at
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export JAX_PLATFORMS=cpu TRANSFORMERS_NO_ADVISORY_WARNINGS=1
python "$here/check.py" "$work"
