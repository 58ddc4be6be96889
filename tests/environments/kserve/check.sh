#!/usr/bin/env bash
# The quickstart's export behind KServe's own server, asked by the client of the docs.
#   check.sh WORKDIR      of a finished quickstart; RANKER_PYTHON is its Python
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
port="$("$RANKER_PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
work="$(mktemp -d)"
server=""
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
# Again: the quickstart may have run without the packages that write a graph.
"$RANKER_PYTHON" -m ranker.export --config configs/export.py --workdir "$1" \
  --config.folder="$work/export"
python "$here/serve.py" "$work/export" "$port" >"$work/log" 2>&1 &
server=$!
NO_PROXY=127.0.0.1 python "$here/check.py" "$work/export" "$port" || { tail -20 "$work/log"; exit 1; }
