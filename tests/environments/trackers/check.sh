#!/usr/bin/env bash
# A stage's metrics in W&B (offline) and MLflow, across a restart.
#   check.sh WORKDIR      of a finished quickstart, which is not looked at
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export JAX_PLATFORMS=cpu WANDB_MODE=offline WANDB_SILENT=true
export RANKER_TRACK=wandb,mlflow MLFLOW_TRACKING_URI="sqlite:///$work/mlflow.db"
python "$here/check.py" "$work"
