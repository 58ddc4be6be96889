#!/usr/bin/env bash
# The quickstart's export behind KServe's own server, asked by the client of the docs.
#   check.sh WORKDIR      of a finished quickstart; RANKER_PYTHON is its Python
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
port="$("$RANKER_PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
log="$(mktemp)"
python "$here/serve.py" "$1/export" "$port" >"$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -f "$log"' EXIT
NO_PROXY=127.0.0.1 python "$here/check.py" "$1/export" "$port" || { tail -20 "$log"; exit 1; }
