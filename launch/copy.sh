#!/usr/bin/env bash
# Copies files and folders between this machine, a bucket and a TPU.
#
#   launch/copy.sh runs/first gs://BUCKET/runs/first       from here to a bucket
#   launch/copy.sh gs://BUCKET/runs/first/export student   from a bucket to here
#   launch/copy.sh NAME:ranker/runs/first gs://BUCKET/runs from the first worker
#   launch/copy.sh gs://BUCKET/data NAME:ranker/data       to every worker
#   launch/copy.sh NAME:ranker/runs/first/export student   from the first worker to here
#
# Paths on a TPU begin at the home folder. Nothing is deleted.
#
# --dry-run   print the commands instead

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

paths=()
while (($#)); do
  case "$1" in
    --help | -h) help ;;
    --dry-run) dry_run=true && shift ;;
    -*) usage_error "unknown flag $1" ;;
    *) paths+=("$1") && shift ;;
  esac
done
((${#paths[@]} == 2)) || usage_error "found ${#paths[@]} paths, expected two: FROM TO"

# Where a path lies: bucket, tpu or here.
place_of() {
  if [[ $1 == gs://* ]]; then
    echo bucket
  elif [[ $1 =~ ^[a-z][-a-z0-9]*: ]]; then
    echo tpu
  else
    echo here
  fi
}

from="${paths[0]}" to="${paths[1]}"
between="$(place_of "$from")-$(place_of "$to")"
case "$between" in
  *tpu*) [[ $between != tpu-tpu ]] || usage_error "copy by way of a bucket" ;;
  here-here) usage_error "both paths are here; one must be gs://... or NAME:PATH" ;;
esac
[[ $between != here-* || -e $from ]] || die "$from: no such file or folder"
need_gcloud
case "$between" in
  tpu-*) load_state "${from%%:*}" && path="${from#*:}" ;;
  *-tpu) load_state "${to%%:*}" && path="${to#*:}" ;;
esac
[[ $between != *tpu* || -n $path ]] || usage_error "the path after $name: is missing"
case "$between" in
  here-bucket | bucket-here | bucket-bucket) run_gcloud storage cp --recursive "$from" "$to" ;;
  tpu-bucket) ssh_to first "gcloud storage cp --recursive $(quote "$path" "$to")" ;;
  bucket-tpu)
    ssh_to all "mkdir -p $(quote "$(dirname "$path")") && gcloud storage cp --recursive \
$(quote "$from" "$path")"
    ;;
  tpu-here) scp_to first "$from" "$to" ;;
  here-tpu) scp_to all "$from" "$to" ;;
esac || die "$from was not copied; the reason is above"
