#!/usr/bin/env bash
# Starts the server with the quickstart's export and asks it with published clients.
#   check.sh WORKDIR      of a finished quickstart; RANKER_PYTHON is its Python
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
port="$("$RANKER_PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
"$RANKER_PYTHON" -m ranker.serve "$1/export" --host 127.0.0.1 --port "$port" &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
for _ in $(seq 600); do
  curl -sf "http://127.0.0.1:$port/ready" >/dev/null && break
  kill -0 "$server" || { echo "the server did not start"; exit 1; }
  sleep 0.5
done
NO_PROXY=127.0.0.1 python "$here/check.py" "http://127.0.0.1:$port"
others="$here/../../../../shared/cases/serving/clients.py"
if [ -f "$others" ]; then
  NO_PROXY=127.0.0.1 python "$others" "http://127.0.0.1:$port"
fi
kill -TERM "$server"
wait "$server"
