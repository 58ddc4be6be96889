#!/usr/bin/env bash
# Stands in for uv on a worker: notes what it was asked to install.
echo "$*" >>"$HOME/uv-calls"
if [[ $1 == venv ]]; then
  mkdir -p "$HOME/ranker-venv/bin"
  ln -s "$(command -v python3)" "$HOME/ranker-venv/bin/python"
fi
