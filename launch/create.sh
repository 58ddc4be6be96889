#!/usr/bin/env bash
# Makes a TPU: a queued resource (default), or a TPU VM at once.
#
#   launch/create.sh NAME --topology v5e:4x4 --zone us-west4-a --bucket gs://BUCKET --spot
#
# NAME                    of the TPU, and of its record under $RANKER_LAUNCH_STATE
# --topology KIND:SHAPE   as ranker.plan takes it: v5e:4x4, v5p:2x2x4 (or:)
# --accelerator-type TYPE as gcloud takes it: v5litepod-16
# --zone ZONE             e.g. us-west4-a
# --project PROJECT       default: gcloud's own
# --slices N              slices of that topology, joined by the data-centre network [1]
# --spot                  cheaper, and may be taken away at any moment
# --vm                    a TPU VM at once, or an error; no queue, one slice
# --bucket gs://BUCKET    mounted at /mnt/bucket on every worker; a restart needs it
# --runtime-version V     of the VM's image; default: by the kind of TPU
# --wait SECONDS          give up waiting after so long, without deleting [0: never]
# --resume                keep waiting for a TPU already requested
# --create-option=--FLAG  any other flag of gcloud's create, e.g. --network=NET; repeatable
# --ssh-option=--FLAG     for every ssh and scp, e.g. --tunnel-through-iap; repeatable
# --dry-run               print the commands instead

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

topology="" accelerator="" wait_seconds=0 resume=false
slices=1 kind=queued-resources spot=false
while (($#)); do
  case "$1" in
    --help | -h) help ;;
    --spot) spot=true && shift ;;
    --vm) kind=tpu-vm && shift ;;
    --resume) resume=true && shift ;;
    --dry-run) dry_run=true && shift ;;
    --topology | --topology=*) take_value "$@" && topology="$value" && shift "$taken" ;;
    --accelerator-type | --accelerator-type=*)
      take_value "$@" && accelerator="$value" && shift "$taken"
      ;;
    --zone | --zone=*) take_value "$@" && zone="$value" && shift "$taken" ;;
    --project | --project=*) take_value "$@" && project="$value" && shift "$taken" ;;
    --slices | --slices=*) take_value "$@" && slices="$value" && shift "$taken" ;;
    --bucket | --bucket=*) take_value "$@" && bucket="$value" && shift "$taken" ;;
    --runtime-version | --runtime-version=*)
      take_value "$@" && runtime="$value" && shift "$taken"
      ;;
    --wait | --wait=*) take_value "$@" && wait_seconds="$value" && shift "$taken" ;;
    --create-option=*) take_value "$@" && create_options+=("$value") && shift ;;
    --ssh-option=*) take_value "$@" && ssh_options+=("$value") && shift ;;
    -*) usage_error "unknown flag $1" ;;
    *)
      [[ -z $name ]] || usage_error "found a second name, '$1'"
      name="$1" && shift
      ;;
  esac
done
[[ -n $name ]] || usage_error "NAME is missing"
check_name "$name"
want_number --wait "$wait_seconds"

# The runtime image and gcloud's name of the slice, from what ranker.plan calls it.
choose_shape() {
  local generation="${topology%%:*}"
  if [[ -n $topology ]]; then
    [[ -z $accelerator ]] || usage_error "--topology and --accelerator-type exclude each other"
    take_topology --topology "$topology"
  elif [[ $accelerator =~ ^(v[2-6][a-z]*)-[0-9]+$ ]]; then
    generation="${BASH_REMATCH[1]}"
    shape=("--accelerator-type=$accelerator")
  else
    usage_error "--accelerator-type: found '$accelerator', expected e.g. v5litepod-16, \
v4-32 or v6e-8; or give --topology v5e:4x4"
  fi
  [[ -z $runtime ]] || return 0
  case "$generation" in
    v2 | v3 | v4) runtime=tpu-ubuntu2204-base ;;
    v5e | v5litepod) runtime=v2-alpha-tpuv5-lite ;;
    v5p) runtime=v2-alpha-tpuv5 ;;
    v6e) runtime=v2-alpha-tpuv6e ;;
    *) usage_error "no image is known for $generation; give --runtime-version" ;;
  esac
}

if $dry_run && [[ -z ${RANKER_LAUNCH_REHEARSAL:-} ]]; then
  state_root="$(mktemp -d)" # a dry run leaves no trace
  trap 'rm -rf "$state_root"' EXIT
else
  trap say_what_is_left EXIT
fi
trap 'exit 130' INT TERM

if $resume; then
  load_state "$name"
else
  [[ ! -f $(state_file) ]] || die "$name already exists (launch/list.sh); resume \
waiting with --resume, or choose another name"
  [[ -n $zone ]] || usage_error "--zone is missing, e.g. --zone us-west4-a"
  want_number --slices "$slices"
  ((slices >= 1)) || usage_error "--slices: found 0, expected 1 or more"
  [[ $kind == queued-resources ]] || ((slices == 1)) || usage_error \
    "--vm makes one slice, and --slices is $slices; leave --vm out to ask for several"
  [[ -z $bucket || $bucket =~ ^gs://[a-z0-9][-a-z0-9_.]+/?$ ]] || usage_error \
    "--bucket: found '$bucket', expected gs://NAME, without a folder"
  bucket="${bucket#gs://}" bucket="${bucket%/}"
  choose_shape
  set_place
  id="$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')"
  # What an earlier TPU of this name was given.
  if $dry_run; then id=ID; else rm -f "$(versions_file)"; fi
fi
need_gcloud
if ! $resume; then
  create_tpu || die "$name was not made; the reason is above"
fi
wait_for_tpu "$wait_seconds" ||
  die "$name is $detail and will not come; delete it with launch/delete.sh $name"
say "$name is ready. Install the package with launch/install.sh $name"
