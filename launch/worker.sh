#!/usr/bin/env bash
# What a worker of the TPU is told to do; run there by the other scripts.
#
#   worker.sh resolve EXTRAS           print "ranker-version NAME==VERSION" of each package
#   worker.sh install EXTRAS BUCKET    Python, the package, and the bucket at /mnt/bucket
#   worker.sh start JOB COMMAND...     start the command, apart from this connection
#   worker.sh follow JOB BYTE SECONDS  the job's output from BYTE on, while it runs
#   worker.sh code JOB                 print "ranker-code HOST running|lost|CODE"
#   worker.sh stop JOB                 SIGTERM, and SIGKILL a minute later
#
# A job has a folder, ~/ranker-jobs/JOB: log, pid, and code once it has ended.

set -euo pipefail

fail() {
  printf 'error: %s: %s\n' "$(hostname)" "$*" >&2
  exit 1
}

mount_bucket() {
  local bucket="$1" at="${RANKER_BUCKET_FOLDER:-/mnt/bucket}" probe
  if ! mountpoint -q "$at"; then
    if ! command -v gcsfuse >/dev/null; then
      local key=/usr/share/keyrings/cloud.google.asc
      curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
      echo "deb [signed-by=$key] https://packages.cloud.google.com/apt \
gcsfuse-$(lsb_release -cs) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
      # A new VM may still be busy with its own updates.
      sudo apt-get -o DPkg::Lock::Timeout=600 update -qq
      sudo apt-get -o DPkg::Lock::Timeout=600 install -y -qq gcsfuse
    fi
    sudo mkdir -p "$at"
    sudo chown "$(id -u):$(id -g)" "$at"
    # No cached metadata: what one worker writes, the others see.
    gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 "$bucket" "$at"
  fi
  # A checkpoint is written aside and renamed: a flat bucket cannot rename.
  probe="$at/.ranker-probe-$(hostname)-$$"
  mkdir "$probe"
  : >"$probe/file"
  mv "$probe" "$probe.renamed" || fail "gs://$bucket: a folder cannot be renamed there; \
use a bucket made with --enable-hierarchical-namespace"
  rm -rf "$probe.renamed"
}

uv="$HOME/.local/bin/uv"
versions="$HOME/ranker-versions.txt" # NAME==VERSION, as run.sh and install.sh send them

make_venv() {
  # The VM's own Python is 3.10 on most images. uv brings a newer one.
  [[ -x $uv ]] || PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user --quiet 'uv>=0.5'
  [[ -x $HOME/ranker-venv/bin/python ]] ||
    "$uv" venv --quiet --python 3.12 "$HOME/ranker-venv"
}

# Versions that the file has already stay where they can.
resolve() {
  local flags=() extra
  for extra in ${1//,/ }; do flags+=("--extra=$extra"); done
  make_venv
  "$uv" pip compile --quiet --python "$HOME/ranker-venv/bin/python" --no-header \
    --no-annotate --constraint "$HOME/ranker/launch/constraints.txt" "${flags[@]}" \
    --output-file "$versions" "$HOME/ranker/pyproject.toml" >/dev/null
  sed -n 's/^[A-Za-z0-9].*==/ranker-version &/p' "$versions"
}

install() {
  local extras="$1" bucket="$2"
  make_venv
  "$uv" pip install --quiet --python "$HOME/ranker-venv/bin/python" \
    --constraint "$versions" --editable "$HOME/ranker[$extras]"
  [[ -z $bucket ]] || mount_bucket "$bucket"
  echo "installed on $(hostname)"
}

# Runs in a session of its own; what is left of it is the exit code.
main() {
  local job="$1" code=0 child
  shift
  cd "$HOME/ranker"
  export PATH="$HOME/ranker-venv/bin:$PATH" PYTHONUNBUFFERED=1
  # A worker that finds no TPU must not continue alone on its CPU.
  export JAX_PLATFORMS="${JAX_PLATFORMS:-tpu,cpu}"
  # The workers do one run together: ranker has jax find the others.
  export RANKER_PROCESSES="${RANKER_PROCESSES:-auto}"
  "$@" &
  child=$!
  trap 'kill -TERM "$child" 2>/dev/null || true' TERM INT HUP
  while true; do
    code=0
    wait "$child" || code=$?
    kill -0 "$child" 2>/dev/null || break # a signal ends `wait` before the child has ended
  done
  echo "$code" >"$job/code.new"
  mv "$job/code.new" "$job/code"
}

running() { [[ -f $1/pid ]] && kill -0 "$(cat "$1/pid")" 2>/dev/null; }

start() {
  local job="$HOME/ranker-jobs/$1"
  shift
  if [[ -d $job ]]; then # asked again, because the answer was lost
    echo "ranker-started $(hostname)"
    return
  fi
  mkdir -p "$job.new"
  : >"$job.new/log"
  mv "$job.new" "$job"
  setsid nohup bash "$0" main "$job" "$@" >>"$job/log" 2>&1 </dev/null &
  echo $! >"$job/pid"
  echo "ranker-started $(hostname)"
}

follow() {
  local job="$HOME/ranker-jobs/$1" byte="$2" seconds="$3"
  timeout "$seconds" tail -c "+$byte" -F -s 0.5 --pid="$(cat "$job/pid")" "$job/log" 2>/dev/null || true
}

code() {
  local job="$HOME/ranker-jobs/$1" found=lost
  if [[ -f $job/code ]]; then
    found="$(cat "$job/code")"
  elif running "$job"; then
    found=running
  elif [[ -f $job/code ]]; then # it ended just now
    found="$(cat "$job/code")"
  fi
  echo "ranker-code $(hostname) $found"
}

stop() {
  local job="$HOME/ranker-jobs/$1" second
  running "$job" || return 0
  kill -TERM "$(cat "$job/pid")"
  for ((second = 0; second < ${RANKER_STOP_SECONDS:-60}; second++)); do
    running "$job" || return 0
    sleep 1
  done
  kill -KILL -- "-$(cat "$job/pid")" 2>/dev/null || true # the whole session
}

command="${1:?worker.sh wants a command}"
shift
case "$command" in
  resolve | install | main | start | follow | code | stop) "$command" "$@" ;;
  *) fail "unknown command $command" ;;
esac
