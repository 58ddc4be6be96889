#!/usr/bin/env bash
# Ends a job on all workers: SIGTERM, upon which a stage saves and leaves; SIGKILL after a
# minute. The TPU stays. A launch/run.sh that watches the job would start it again: end
# that one first (Ctrl-C).
#
#   launch/stop.sh NAME [--job JOB] [--dry-run]
#
# --job JOB   [the last one]
# --dry-run   print the commands instead

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

job="" tpu=""
while (($#)); do
  case "$1" in
    --help | -h) help ;;
    --dry-run) dry_run=true && shift ;;
    --job | --job=*) take_value "$@" && job="$value" && shift "$taken" ;;
    -*) usage_error "unknown flag $1" ;;
    *)
      [[ -z $tpu ]] || usage_error "found a second name, '$1'"
      tpu="$1" && shift
      ;;
  esac
done
[[ -n $tpu ]] || usage_error "NAME is missing"
load_state "$tpu"
jobs="$state_root/$name/jobs"
[[ -n $job ]] || job="$(cat "$jobs/last" 2>/dev/null)" || die "no job was started on $name"
[[ $job =~ ^[A-Za-z0-9][-A-Za-z0-9_.]*$ && -f $jobs/$job/attempt ]] ||
  die "no job '$job' was started on $name"
need_gcloud
trap say_what_is_left EXIT
ssh_to all "$worker stop $job.$(cat "$jobs/$job/attempt")" ||
  die "not every worker of $name answered; try again"
say "job $job is stopped"
