#!/usr/bin/env bash
# Installs this checkout, as it stands, on every worker: Python, jax and libtpu as
# launch/constraints.txt pins them, and the bucket at /mnt/bucket. Again, after a change.
# The first worker finds out the version of every package. All of them get those, in
# each restart too; another install changes only what the checkout no longer takes.
#
#   launch/install.sh NAME [--extras tpu,track] [--source FOLDER] [--upgrade] [--dry-run]
#
# --extras LIST    of the package [tpu]
# --source FOLDER  of the checkout [the one with this script]
# --upgrade        take the newest versions, whatever was installed before
# --dry-run        print the commands instead

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

source_folder="$here/.." new_extras="" tpu="" upgrade=false
while (($#)); do
  case "$1" in
    --help | -h) help ;;
    --dry-run) dry_run=true && shift ;;
    --upgrade) upgrade=true && shift ;;
    --extras | --extras=*) take_value "$@" && new_extras="$value" && shift "$taken" ;;
    --source | --source=*) take_value "$@" && source_folder="$value" && shift "$taken" ;;
    -*) usage_error "unknown flag $1" ;;
    *)
      [[ -z $tpu ]] || usage_error "found a second name, '$1'"
      tpu="$1" && shift
      ;;
  esac
done
[[ -n $tpu ]] || usage_error "NAME is missing"
load_state "$tpu"
[[ -z $new_extras ]] || extras="$new_extras"
extras="${extras:-tpu}"
[[ $extras =~ ^[a-z]+(,[a-z]+)*$ ]] ||
  usage_error "--extras: found '$extras', expected names between commas, e.g. tpu,track"
[[ -f $source_folder/pyproject.toml ]] ||
  die "$source_folder: no pyproject.toml there; --source wants a checkout of the package"
need_gcloud
trap say_what_is_left EXIT
trap 'exit 130' INT TERM
if ! $dry_run; then
  pack_source "$source_folder" "$state_root/$name/source.tar.gz"
  save_state
  if $upgrade; then rm -f "$(versions_file)"; fi
fi
install_on_workers resolve || die "$name is $detail; make it anew: launch/delete.sh, launch/create.sh"
say "installed, with the versions in $(versions_file); run a stage with: launch/run.sh $name -- python -m ranker.train ..."
