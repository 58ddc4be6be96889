#!/usr/bin/env bash
# Exports as transformers 4 reads them: the quickstart's student and teacher, and tiny
# models of the families that it spells otherwise; and the ONNX file as optimum reads it.
#   check.sh WORKDIR      of a finished quickstart; RANKER_PYTHON is its Python
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"$RANKER_PYTHON" -m ranker.export --config configs/export.py --workdir "$1" \
  --config.stage=sft --config.folder="$work/teacher"
"$RANKER_PYTHON" "$here/make.py" "$work/tiny"
rm -r "$work/tiny/bpe" "$work/tiny/wordpiece"
python "$here/check.py" "$1/export" "$work/teacher" "$work"/tiny/*
python "$here/onnx_backend.py" "$1/export"
