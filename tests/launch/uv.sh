#!/usr/bin/env bash
# Stands in for uv on a worker: notes what it was asked to install. The newest version of
# each package is a line of CLOUD/index.
echo "$*" >>"$HOME/uv-calls"
value_of() { # of the flag $1
  local flag="$1"
  shift
  while [[ $1 != "$flag" ]]; do shift; done
  printf '%s' "$2"
}
case "$1 $2" in
  venv*)
    mkdir -p "$HOME/ranker-venv/bin"
    ln -s "$(command -v python3)" "$HOME/ranker-venv/bin/python"
    ;;
  "pip compile") # what the file has stays, as with uv
    file="$(value_of --output-file "$@")"
    while IFS= read -r line; do
      grep "^${line%%==*}==" "$file" || echo "$line"
    done <"$FAKE_CLOUD/index" >"$file.new"
    mv "$file.new" "$file"
    ;;
  "pip install") cp "$(value_of --constraint "$@")" "$HOME/installed" ;;
esac
