# shellcheck shell=bash
# What the scripts of this folder share: messages, quoting, the record of what was
# made, and the few gcloud commands that everything is built from.
#
# Each TPU that these scripts make has a folder under $RANKER_LAUNCH_STATE (default
# ~/.local/state/ranker-launch) with an id, and carries that id as its label
# `ranker_launch`. Nothing is deleted unless both agree.
#
# shellcheck disable=SC2034  # variables that the scripts read

set -euo pipefail
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash ${BASH_VERSION} is too old, 4.4 is needed (macOS: brew install bash)" >&2
  exit 1
fi

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
state_root="${RANKER_LAUNCH_STATE:-${XDG_STATE_HOME:-$HOME/.local/state}/ranker-launch}"
poll="${RANKER_LAUNCH_POLL:-20}" # seconds between two looks at something
dry_run=false
worker='bash ranker/launch/worker.sh' # how a worker is told anything
LABEL=ranker_launch

# --- messages and quoting ---

say() { $dry_run || printf '[launch] %s\n' "$*" >&2; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

usage_error() {
  printf 'error: %s; see %s --help\n' "$*" "$0" >&2
  exit 2
}

# The comment at the head of the script is its help.
help() {
  sed -n '2,/^$/ { /^#/! q; s/^# \{0,1\}//p }' "$0"
  exit 0
}

# Words as a POSIX shell must be given them, so that it gives the same words back.
quote() {
  local word quoted=()
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      quoted+=("$word")
    else
      quoted+=("'${word//\'/\'\\\'\'}'")
    fi
  done
  printf '%s' "${quoted[*]}"
}

# Runs gcloud, and shows what it is asked; with --dry-run it only shows it.
run_gcloud() {
  if $dry_run; then
    printf '%s\n' "$(quote gcloud "$@")"
    return 0
  fi
  printf '+ %s\n' "$(quote gcloud "$@")" >&2
  gcloud "$@"
}

need_gcloud() {
  $dry_run || command -v gcloud >/dev/null ||
    die "gcloud is not on the PATH; install the Google Cloud CLI, then: gcloud auth login"
}

# Value of `--flag value` or `--flag=value`: sets `value` and `taken`, the words used.
take_value() {
  if [[ $1 == *=* ]]; then
    value="${1#*=}" taken=1
  elif (($# >= 2)); then
    value="$2" taken=2
  else
    usage_error "$1 wants a value"
  fi
  [[ $value != *$'\n'* ]] || usage_error "${1%%=*} cannot hold a line break"
}

want_number() {
  [[ $2 =~ ^[0-9]+$ ]] || usage_error "$1: found '$2', expected a whole number"
}

# take_topology FLAG KIND:SHAPE: sets `shape`, gcloud's name of what ranker.plan calls so.
take_topology() {
  local generation="${2%%:*}" sides="${2#*:}"
  [[ $2 =~ ^(v4|v5e|v5p|v6e):[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || usage_error \
    "$1: found '$2', expected v4:, v5e:, v5p: or v6e: and sides, e.g. \
v5e:4x4 or v5p:2x2x4 (TPU7x is available only through Kubernetes)"
  case "$generation" in
    v5e) shape=("--accelerator-type=v5litepod-$(chips_of "$2")") ;;
    v6e) shape=("--accelerator-type=v6e-$(chips_of "$2")") ;;
    *) shape=("--type=$generation" "--topology=$sides") ;;
  esac
}

# Chips of a slice KIND:SHAPE.
chips_of() {
  local chips=1 side sides="${1#*:}"
  for side in ${sides//x/ }; do chips=$((chips * side)); done
  printf '%s' "$chips"
}

# --- the record of what was made ---

name="" id="" kind="" zone="" project="" spot="" slices="" bucket="" runtime="" extras=""
shape=() create_options=() ssh_options=()

check_name() {
  [[ $1 =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || usage_error \
    "'$1' cannot name a TPU: it takes 1 to 40 of a-z, 0-9 and -, and begins with a letter"
}

state_file() { printf '%s' "$state_root/$name/state"; }

save_state() {
  mkdir -p "$state_root/$name"
  chmod 700 "$state_root/$name"
  {
    printf '%s=%s\n' id "$id" kind "$kind" zone "$zone" project "$project" \
      spot "$spot" slices "$slices" bucket "$bucket" runtime "$runtime" extras "$extras"
    ((${#shape[@]} == 0)) || printf 'shape=%s\n' "${shape[@]}"
    ((${#create_options[@]} == 0)) || printf 'create_option=%s\n' "${create_options[@]}"
    ((${#ssh_options[@]} == 0)) || printf 'ssh_option=%s\n' "${ssh_options[@]}"
  } >"$(state_file).new"
  mv "$(state_file).new" "$(state_file)"
}

# Reads what create.sh wrote. The file is data: no line of it is ever run.
load_state() {
  name="$1"
  check_name "$name"
  [[ -f $(state_file) ]] || die "$name was not made here ($state_root has \
$(list_names)); make it with launch/create.sh, or see launch/list.sh"
  shape=() create_options=() ssh_options=()
  local key value
  while IFS='=' read -r key value; do
    case "$key" in
      id) id="$value" ;;
      kind) kind="$value" ;;
      zone) zone="$value" ;;
      project) project="$value" ;;
      spot) spot="$value" ;;
      slices) slices="$value" ;;
      bucket) bucket="$value" ;;
      runtime) runtime="$value" ;;
      extras) extras="$value" ;;
      shape) shape+=("$value") ;;
      create_option) create_options+=("$value") ;;
      ssh_option) ssh_options+=("$value") ;;
      *) die "$(state_file): unknown line '$key=$value'; it was written by another version" ;;
    esac
  done <"$(state_file)"
  [[ -n $id && -n $zone && $kind =~ ^(queued-resources|tpu-vm)$ && $slices =~ ^[0-9]+$ ]] ||
    die "$(state_file) is damaged; look at the TPU with gcloud and delete it by hand"
  set_place
}

set_place() {
  place=("--zone=$zone")
  [[ -z $project ]] || place+=("--project=$project")
}

list_names() {
  local names=() folder
  for folder in "$state_root"/*/; do
    [[ ! -f $folder/state ]] || names+=("$(basename "$folder")")
  done
  printf '%s' "${names[*]:-nothing}"
}

# Logs and results of jobs stay; only the record goes.
forget() { $dry_run || rm -f "$(state_file)"; }

# Said whenever a script ends while something that costs money exists.
say_what_is_left() {
  [[ -n $name && -f $(state_file) ]] || return 0
  say "left running: $kind $name in $zone; it costs money until you delete it"
  say "  look at it   launch/list.sh"
  say "  watch a job  launch/run.sh $name --attach"
  say "  delete it    launch/delete.sh $name"
}

# --- gcloud: a TPU ---

nodes() {
  local i
  if [[ $kind == tpu-vm ]] || ((slices == 1)); then
    printf '%s\n' "$name"
  else
    for ((i = 0; i < slices; i++)); do printf '%s\n' "$name-$i"; done
  fi
}

# describe GROUP NAME FIELD: sets `answer`. Returns 1 where there is no such thing, and 2
# where gcloud could not tell.
describe() {
  local command=(compute tpus "$1" describe "$2" "${place[@]}" "--format=value($3)")
  answer=""
  if $dry_run; then
    run_gcloud "${command[@]}"
    return 0
  fi
  local errors result=0
  errors="$(mktemp)"
  answer="$(gcloud "${command[@]}" 2>"$errors")" || result=2
  if ((result)) && grep -qiE 'not[_ ]found|does not exist' "$errors"; then
    result=1
  elif ((result)); then
    say "gcloud cannot describe $2: $(tail -n 3 "$errors")"
  fi
  rm -f "$errors"
  return "$result"
}

# Sets `condition`: ready, waiting, gone (there, and of no use), missing or unknown; and
# `detail`, what Google calls it.
look() {
  local field=state node result=0
  [[ $kind == tpu-vm ]] || field=state.state
  describe "$kind" "$name" "$field" || result=$?
  detail="$answer"
  case "$result:$answer" in
    1:*) condition=missing detail="no such TPU" ;;
    2:*) condition=unknown detail="gcloud fails" ;;
    *:ACTIVE | *:READY) condition=ready ;;
    *:CREATING | *:ACCEPTED | *:PROVISIONING | *:WAITING_FOR_RESOURCES) condition=waiting ;;
    *:STARTING | *:RESTARTING | *:REPAIRING) condition=waiting ;;
    *:*) condition=gone ;;
  esac
  if $dry_run; then
    condition=ready
  elif [[ $kind == queued-resources && $condition == ready ]]; then
    # A preempted slice is seen here first.
    while read -r node; do
      result=0
      describe tpu-vm "$node" state || result=$?
      case "$result:$answer" in
        1:*) condition=gone detail="$node is missing" ;;
        2:*) [[ $condition == gone ]] || condition=unknown ;;
        *:READY) ;;
        *:REPAIRING | *:RESTARTING | *:STARTING | *:CREATING)
          [[ $condition == gone ]] || condition=waiting detail="$node is $answer"
          ;;
        *:*) condition=gone detail="$node is $answer" ;;
      esac
    done < <(nodes)
  fi
}

# Whether the TPU of this name carries our label. Returns as describe does; 3: it does not.
is_ours() {
  local field="labels.$LABEL" result=0
  [[ $kind == tpu-vm ]] || field="tpu.nodeSpec[0].node.labels.$LABEL"
  describe "$kind" "$name" "$field" || result=$?
  if ((result == 0)) && ! $dry_run && [[ $answer != "$id" ]]; then result=3; fi
  return "$result"
}

# Asks for the TPU. Returns 1 when Google refuses and nothing was made.
create_tpu() {
  local command=(compute tpus "$kind" create "$name" "${place[@]}" "${shape[@]}")
  if [[ $kind == tpu-vm ]]; then
    command+=("--version=$runtime")
  elif ((slices == 1)); then
    command+=("--runtime-version=$runtime" "--node-id=$name" --async)
  else
    command+=("--runtime-version=$runtime" "--node-count=$slices" "--node-prefix=$name" --async)
  fi
  [[ $spot != true ]] || command+=(--spot)
  command+=("--labels=$LABEL=$id" "${create_options[@]}")
  save_state
  run_gcloud "${command[@]}" && return 0
  local result=0
  is_ours || result=$?
  case "$result" in
    0) say "gcloud failed, but $name exists all the same" && return 0 ;;
    2) die "gcloud failed, and cannot say whether $name was made; launch/list.sh shows it" ;;
    *) forget && return 1 ;;
  esac
}

# Waits until the TPU can be used, at most $1 seconds (0: for ever). Returns 1 when it will
# not come; with a second word also after those seconds, which else end the script.
wait_for_tpu() {
  local limit="$1" start=$SECONDS last=""
  while true; do
    look
    [[ $detail == "$last" ]] || say "$name: $detail"
    last="$detail"
    case "$condition" in
      ready) return 0 ;;
      gone | missing) return 1 ;;
    esac
    if ((limit > 0 && SECONDS - start >= limit)); then
      [[ -z ${2:-} ]] || return 1
      die "$name is still $detail after $limit s; wait on with launch/create.sh $name \
--resume, or give it up with launch/delete.sh $name"
    fi
    sleep "$poll"
  done
}

# Deletes the TPU if it is the one that was made here.
delete_tpu() {
  local result=0 flags=(--quiet)
  [[ $kind == tpu-vm ]] || flags+=(--force)
  is_ours || result=$?
  case "$result" in
    0) ;;
    1) say "$name is gone already" && return 0 ;;
    2) die "gcloud cannot say whether $name is ours: nothing was deleted; try again" ;;
    *)
      die "$name in $zone has the label $LABEL='$answer', and ours has '$id': it was made \
by something else, so it is not deleted. By hand: $(quote gcloud compute tpus "$kind" \
delete "$name" "${place[@]}"); then: rm $(quote "$(state_file)")"
      ;;
  esac
  run_gcloud compute tpus "$kind" delete "$name" "${place[@]}" "${flags[@]}" ||
    die "$name could not be deleted: it is still there and costs money; try again"
}

# --- gcloud: its workers ---

on_workers() {
  if [[ $1 == all ]]; then
    where=(--worker=all)
    [[ $kind == tpu-vm ]] || where+=(--node=all)
  else
    where=(--worker=0)
    [[ $kind == tpu-vm ]] || where+=(--node=0)
  fi
}

# ssh_to all|first COMMAND: the command, for the workers' shell, is sent unchanged.
ssh_to() {
  local where
  on_workers "$1"
  run_gcloud compute tpus "$kind" ssh "$name" "${place[@]}" "${where[@]}" \
    --ssh-flag=-oServerAliveInterval=20 --ssh-flag=-oServerAliveCountMax=6 \
    "${ssh_options[@]}" "--command=$2"
}

# scp_to all|first SOURCE DESTINATION, one of them $name:PATH.
scp_to() {
  local where
  on_workers "$1"
  run_gcloud compute tpus "$kind" scp "$2" "$3" --recurse "${place[@]}" "${where[@]}" \
    "${ssh_options[@]}"
}

# Tries a command until it works, as long as the TPU exists: ssh drops, and a new VM
# takes a while to answer. Returns 1 when the TPU is gone.
insist() {
  local tries=0 limit="${RANKER_LAUNCH_TRIES:-15}"
  until "$@"; do
    tries=$((tries + 1))
    look
    case "$condition" in
      gone | missing) return 1 ;;
      waiting) tries=0 ;; # Google repairs it
    esac
    ((tries < limit)) ||
      die "no answer from $name after $limit tries; it is $detail. Look at the messages above"
    say "no answer from $name ($detail); again in $poll s"
    sleep "$poll"
  done
}

# --- installing ---

# Packs the working tree, without what git ignores, for the workers.
pack_source() {
  local root="$1" target="$2"
  if git -C "$root" rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    (cd "$root" && git ls-files -z --cached --others --exclude-standard |
      while IFS= read -r -d '' file; do
        [[ ! -e $file && ! -L $file ]] || printf '%s\0' "$file"
      done | tar --null --files-from=- -czf "$target")
  else
    tar -C "$root" --exclude='./runs' --exclude='__pycache__' --exclude='./.*' \
      -czf "$target" .
  fi
}

# What `install` gives every worker, in every restart the same.
versions_file() { printf '%s' "$state_root/$name/versions.txt"; }

unpack="rm -rf ranker.new && mkdir ranker.new && tar -xzf ranker-source.tar.gz -C ranker.new \
&& rm -rf ranker && mv ranker.new ranker"

# Sends this machine's record of versions to all workers, or to the first.
send_versions() { scp_to "$1" "$(versions_file)" "$name:ranker-versions.txt"; }

# Asks the first worker which version of every package this source and these extras take.
# Sets `text`.
ask_versions() {
  text="$(ssh_to first "$unpack && $worker resolve $(quote "$extras")")" || return 1
  $dry_run || grep -q '^ranker-version ' <<<"$text"
}

# Records the versions, those recorded before wherever they still can be. Returns 1 when
# the TPU is gone.
resolve_versions() {
  local text file
  file="$(versions_file)"
  $dry_run || : >>"$file"
  insist send_versions first || return 1
  insist ask_versions || return 1
  if $dry_run; then
    printf '%s\n' "$text"
    return
  fi
  sed -n 's/^ranker-version //p' <<<"$text" >"$file.new"
  mv "$file.new" "$file"
}

# Puts the packed source on every worker and installs it, with the versions of the first
# time; with a word behind, as the source needs them now. Returns 1 when the TPU is gone.
install_on_workers() {
  local archive="$state_root/$name/source.tar.gz"
  insist scp_to all "$archive" "$name:ranker-source.tar.gz" || return 1
  if [[ -n ${1:-} || ! -s $(versions_file) ]]; then
    resolve_versions || return 1
  fi
  insist send_versions all || return 1
  insist ssh_to all "$unpack && $worker install $(quote "$extras" "$bucket")" || return 1
}
