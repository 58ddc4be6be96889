#!/usr/bin/env bash
# From nothing to a result: makes the TPU, installs, runs the command, deletes the TPU.
#
#   launch/train.sh NAME --topology v5e:4x4 --zone us-west4-a --spot --bucket gs://BUCKET \
#     -- python -m ranker.train --config configs/sft.py --workdir /mnt/bucket/runs/first
#
# Takes the flags of launch/create.sh, and:
#
# --extras LIST      of the package [tpu]
# --max-restarts N   [100]
# --smaller SHAPE    as launch/run.sh takes it; so is --patience SECONDS
# --keep             leave the TPU there when the command has succeeded
# --dry-run          print every command instead
#
# When the command fails the TPU stays, to be looked at, and is named.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

keep=false creating=() installing=() running=() command=() tpu=""
while (($#)); do
  case "$1" in
    --help | -h) help ;;
    --keep) keep=true && shift ;;
    --dry-run) dry_run=true && shift ;;
    --extras | --extras=*) take_value "$@" && installing+=("--extras=$value") && shift "$taken" ;;
    --max-restarts | --max-restarts=*)
      take_value "$@" && running+=("--max-restarts=$value") && shift "$taken"
      ;;
    --smaller | --smaller=* | --patience | --patience=*)
      take_value "$@" && running+=("${1%%=*}=$value") && shift "$taken"
      ;;
    --) shift && command=("$@") && break ;;
    --spot | --vm | --*=*) creating+=("$1") && shift ;;
    --*) take_value "$@" && creating+=("$1=$value") && shift "$taken" ;;
    *)
      [[ -z $tpu ]] || usage_error "found '$1' before --; the command comes after it"
      tpu="$1" && shift
      ;;
  esac
done
[[ -n $tpu ]] || usage_error "NAME is missing"
((${#command[@]})) || usage_error "the command is missing: -- python -m ranker.train ..."
if $dry_run; then
  RANKER_LAUNCH_STATE="$(mktemp -d)"
  export RANKER_LAUNCH_STATE RANKER_LAUNCH_REHEARSAL=1
  trap 'rm -rf "$RANKER_LAUNCH_STATE"' EXIT
  creating+=(--dry-run) installing+=(--dry-run) running+=(--dry-run)
fi
"$here/create.sh" "$tpu" "${creating[@]}"
"$here/install.sh" "$tpu" "${installing[@]}"
"$here/run.sh" "$tpu" "${running[@]}" -- "${command[@]}"
if $keep; then exit 0; fi
if $dry_run; then "$here/delete.sh" "$tpu" --dry-run; else "$here/delete.sh" "$tpu"; fi
