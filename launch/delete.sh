#!/usr/bin/env bash
# Deletes a TPU that launch/create.sh made, and nothing else: its name must be in the
# record here and its label must agree. Logs and the bucket stay.
#
#   launch/delete.sh NAME [--dry-run]

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

tpu=""
while (($#)); do
  case "$1" in
    --help | -h) help ;;
    --dry-run) dry_run=true && shift ;;
    -*) usage_error "unknown flag $1" ;;
    *)
      [[ -z $tpu ]] || usage_error "found a second name, '$1'; delete one at a time"
      tpu="$1" && shift
      ;;
  esac
done
[[ -n $tpu ]] || usage_error "NAME is missing"
load_state "$tpu"
need_gcloud
trap say_what_is_left EXIT
trap 'exit 130' INT TERM
delete_tpu
forget
say "$name is deleted"
