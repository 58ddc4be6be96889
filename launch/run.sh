#!/usr/bin/env bash
# Runs a command on all workers, streams the first worker's output, and starts it again,
# from its last checkpoint, when the TPU was taken away or the command says exit code 75.
#
#   launch/run.sh NAME -- python -m ranker.train --config configs/sft.py \
#     --workdir /mnt/bucket/runs/first
#   launch/run.sh NAME --attach        watch the last job again
#
# --job JOB          name of the job [its time]
# --attach           watch a job that runs instead of starting one
# --max-restarts N   before giving up [100]
# --smaller SHAPE    slice to resume on when one of the first shape is unavailable, as KIND:SHAPE
#                    (v5e:2x4); repeatable, each smaller than the one before
# --patience SECONDS that each shape is waited for, while there is a smaller one [1800]
# --dry-run          print the commands instead
#
# The command runs in the checkout's folder, apart from the connection: neither Ctrl-C nor
# a lost connection ends it (launch/stop.sh does). The exit code is the command's.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

TEMPORARY_FAILURE=75 # what ranker leaves with after SIGTERM, once it has saved
job="" attach=false max_restarts=100 tpu="" command=()
smaller=() patience=1800
while (($#)); do
  case "$1" in
    --help | -h) help ;;
    --dry-run) dry_run=true && shift ;;
    --attach) attach=true && shift ;;
    --job | --job=*) take_value "$@" && job="$value" && shift "$taken" ;;
    --max-restarts | --max-restarts=*)
      take_value "$@" && max_restarts="$value" && shift "$taken"
      ;;
    --smaller | --smaller=*) take_value "$@" && smaller+=("$value") && shift "$taken" ;;
    --patience | --patience=*)
      take_value "$@" && patience="$value" && shift "$taken"
      ;;
    --) shift && command=("$@") && break ;;
    -*) usage_error "unknown flag $1 (the command comes after --)" ;;
    *)
      [[ -z $tpu ]] || usage_error "found '$1' before --; the command comes after it"
      tpu="$1" && shift
      ;;
  esac
done
[[ -n $tpu ]] || usage_error "NAME is missing"

# The kind and the chips of a shape that gcloud is given.
kind_and_chips() {
  local generation count
  if [[ $1 =~ ^--accelerator-type=([a-z0-9]+)-([0-9]+)$ ]]; then
    generation="${BASH_REMATCH[1]/litepod/e}" count="${BASH_REMATCH[2]}"
    # Names of the others count cores, two a chip.
    [[ $generation == v5e || $generation == v6e ]] || count=$((count / 2))
  else
    generation="${1#--type=}" count="$(chips_of "$generation:${2#--topology=}")"
  fi
  printf '%s %s' "$generation" "$count"
}

# Every shape of --smaller is one, of the kind of TPU that there is, and smaller.
check_smaller() {
  local one before="" own=("${shape[@]}") now
  now="$(kind_and_chips "${own[@]}")"
  for one in "${smaller[@]}"; do
    take_topology --smaller "$one"
    before="$now" now="$(kind_and_chips "${shape[@]}")"
    [[ ${now% *} == "${before% *}" ]] || usage_error \
      "--smaller: $one is a ${now% *}, and $name is a ${before% *}; its image and its \
programs are other ones"
    ((${now#* } < ${before#* })) || usage_error \
      "--smaller: $one has ${now#* } chips and what comes before it ${before#* }; name \
smaller and smaller slices"
  done
  shape=("${own[@]}")
}
load_state "$tpu"
want_number --max-restarts "$max_restarts"
want_number --patience "$patience"
check_smaller
[[ -z $job || $job =~ ^[A-Za-z0-9][-A-Za-z0-9_.]*$ ]] ||
  usage_error "--job: found '$job', expected letters, digits, - _ and ."
jobs="$state_root/$name/jobs"

# A job is a folder here too: its command (words between null bytes), the attempt, and the
# log of each attempt.
if $attach; then
  ((${#command[@]} == 0)) || usage_error "--attach takes no command"
  [[ -n $job ]] || job="$(cat "$jobs/last" 2>/dev/null)" ||
    die "no job was started on $name; start one: launch/run.sh $name -- COMMAND"
  [[ -f $jobs/$job/command ]] || die "$jobs/$job: no such job; there are: $(ls "$jobs")"
  mapfile -d '' -t command <"$jobs/$job/command"
  attempt="$(cat "$jobs/$job/attempt")"
else
  ((${#command[@]})) || usage_error "the command is missing: -- python -m ranker.train ..."
  job="${job:-$(date +%Y%m%d-%H%M%S)}"
  attempt=1
  [[ ! -e $jobs/$job ]] || usage_error "--job: $job has been used; see it with --attach"
  if ! $dry_run; then
    mkdir -p "$jobs/$job"
    printf '%s\0' "${command[@]}" >"$jobs/$job/command"
    echo "$attempt" >"$jobs/$job/attempt"
    echo "$job" >"$jobs/last"
  fi
fi
need_gcloud

finished=false
say_goodbye() {
  $finished || say "the job $job may still run on the workers: stop it with \
launch/stop.sh $name, watch it with launch/run.sh $name --attach"
  say_what_is_left
}
trap say_goodbye EXIT
trap 'exit 130' INT TERM

# Whether what the job writes outlives the VM.
is_durable() {
  local word
  [[ -z $bucket ]] || return 0
  for word in "${command[@]}"; do
    [[ $word != *gs://* ]] || return 0
  done
  return 1
}
is_durable || say "no bucket: what the job writes is lost with the TPU, so it will not be \
started on a new one (launch/create.sh --bucket)"

log_file() { printf '%s' "$jobs/$job/log.$attempt"; }

# Runs a command on all workers: sets `answers`, a line WORD HOST ... of each. Fails when
# there are fewer than $1.
ask_workers() {
  local least="$1" word="$2" text
  if $dry_run; then
    ssh_to all "$3"
    return 0
  fi
  text="$(ssh_to all "$3")" || return 1
  mapfile -t answers < <(grep "^$word " <<<"$text")
  ((${#answers[@]} >= least))
}

# Starts the attempt everywhere. Returns 1 when the TPU is gone.
start() {
  say "job $job, attempt $attempt: $(quote "${command[@]}")"
  insist ask_workers 1 ranker-started \
    "$worker start $job.$attempt $(quote "${command[@]}")" || return 1
  $dry_run || echo "${#answers[@]}" >"$jobs/$job/workers"
}

# Streams what the job has printed since the last look, while its first worker runs.
follow() {
  local byte=1
  if $dry_run; then
    ssh_to first "$worker follow $job.$attempt 1 ${RANKER_LAUNCH_FOLLOW:-120}"
    return
  fi
  touch "$(log_file)"
  byte=$(($(wc -c <"$(log_file)") + 1))
  # A connection that breaks is found out by the look that comes next.
  ssh_to first "$worker follow $job.$attempt $byte ${RANKER_LAUNCH_FOLLOW:-120}" |
    tee -a "$(log_file)" || true
}

# Watches the attempt to its end: sets `outcome` to ended, again (here), gone or failed, and
# `code`.
watch() {
  local line found running worst lost workers
  workers="$(cat "$jobs/$job/workers" 2>/dev/null || echo 1)"
  while true; do
    follow
    if ! insist ask_workers "$workers" ranker-code "$worker code $job.$attempt"; then
      outcome=gone
      return
    fi
    if $dry_run; then
      outcome=ended
      return
    fi
    running=0 worst=0 lost=0
    for line in "${answers[@]}"; do
      found="${line##* }"
      case "$found" in
        running) running=$((running + 1)) ;;
        lost) lost=$((lost + 1)) ;;
        "$TEMPORARY_FAILURE") worst=$TEMPORARY_FAILURE ;;
        *)
          # One that says 75 explains why the others failed.
          [[ $found == 0 || $worst == "$TEMPORARY_FAILURE" ]] || worst="$found"
          ;;
      esac
    done
    if ((worst || lost)); then
      look
      # The others wait for the one that left, and hold their chips.
      ((running == 0)) || ssh_to all "$worker stop $job.$attempt" || true
      code="$worst"
      if [[ $condition == gone || $condition == missing ]]; then
        outcome=gone
      elif ((lost || worst == TEMPORARY_FAILURE)); then
        outcome=again
      else
        outcome=failed
      fi
      return
    elif ((running == 0)); then
      outcome=ended code=0
      return
    fi
    sleep 1
  done
}

# Gets a TPU under the same name: of the same shape, or when that cannot be had for
# --patience seconds, of the next smaller one.
replace_tpu() {
  local since=$SECONDS limit
  delete_tpu
  while true; do
    limit=0
    ((${#smaller[@]} == 0)) || limit=$((patience - (SECONDS - since)))
    ((${#smaller[@]} == 0 || limit > 0)) || limit=1
    if create_tpu && wait_for_tpu "$limit" enough; then return; fi
    say "$name cannot be had now; again in $poll s (Ctrl-C gives up)"
    sleep "$poll"
    [[ ! -f $(state_file) ]] || delete_tpu
    if ((${#smaller[@]} && SECONDS - since >= patience)); then
      take_topology --smaller "${smaller[0]}"
      say "asks for ${smaller[0]} in place of what $name was"
      smaller=("${smaller[@]:1}") since=$SECONDS
    fi
  done
}

restarts=0 outcome="" code=0
$attach && outcome=watch
while true; do
  if [[ $outcome == watch ]] || start; then watch; else outcome=gone; fi
  case "$outcome" in
    ended)
      finished=true
      say "job $job is done"
      exit 0
      ;;
    failed)
      finished=true
      say "job $job failed with exit code $code; the output of the first worker is in \
$(log_file), of the others: gcloud ... ssh $name --worker=N --command='cat ranker-jobs/$job.$attempt/log'"
      exit "$code"
      ;;
    gone)
      say "$name was taken away ($detail)"
      is_durable || die "what the job wrote went with the TPU: it is not started again; \
make the TPU with --bucket"
      ;;
    again)
      reason="it saved and left with exit code $code"
      ((code)) || reason="a worker has lost it: out of memory, or started anew"
      say "the job was interrupted ($reason), and $name is still there"
      ;;
  esac
  restarts=$((restarts + 1))
  ((restarts <= max_restarts)) ||
    die "job $job was interrupted $restarts times, more than --max-restarts $max_restarts"
  [[ $outcome == again ]] || replace_tpu
  while ! install_on_workers; do replace_tpu; done
  attempt=$((attempt + 1))
  echo "$attempt" >"$jobs/$job/attempt"
  sleep "$poll"
done
