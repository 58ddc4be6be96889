#!/usr/bin/env bash
# Lists the TPUs that were made here, what Google says of each, and its last job.
#
#   launch/list.sh [--dry-run]

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

while (($#)); do
  case "$1" in
    --help | -h) help ;;
    --dry-run) dry_run=true && shift ;;
    *) usage_error "unknown argument $1" ;;
  esac
done
need_gcloud
found=0
for folder in "$state_root"/*/; do
  [[ -f $folder/state ]] || continue
  found=$((found + 1))
  load_state "$(basename "$folder")"
  look
  printf '%-20s %-16s %-14s %s %s, last job %s\n' "$name" "$kind" "$zone" "${shape[*]}" \
    "$detail" "$(cat "$folder/jobs/last" 2>/dev/null || echo none)"
done
((found)) || say "nothing that was made here is left ($state_root)"
