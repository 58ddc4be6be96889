"""A stand-in for gcloud: keeps a cloud in a folder, and runs what workers are told.

Every call is appended to CLOUD/calls, its arguments as JSON. CLOUD/faults is a list of
[substring of the call, what happens, times]:

fail     exit 1
blind    exit 1 with a network error
drop     exit 255 after the workers did it
preempt  the TPU is taken away, and exit 255

With CLOUD/port (61440 to 65535) a worker's jax finds the others through that port.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

CLOUD = pathlib.Path(os.environ.get("FAKE_CLOUD", "."))
GONE = {"queued-resources": "SUSPENDED", "tpu-vm": "PREEMPTED"}


def load(name, default):
    path = CLOUD / name
    return json.loads(path.read_text()) if path.exists() else default


def save(name, value):
    (CLOUD / name).write_text(json.dumps(value))


def flag(arguments, name, default=None):
    for argument in arguments:
        if argument.startswith(f"{name}="):
            return argument.split("=", 1)[1]
    return default


def homes(tpu, arguments):
    every = sorted((CLOUD / "workers" / tpu).iterdir())
    return every if flag(arguments, "--worker") == "all" else every[:1]


def kill(tpu):
    for path in (CLOUD / "workers" / tpu).glob("*/ranker-jobs/*/pid"):
        if not (path.parent / "code").exists():
            try:
                os.killpg(int(path.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                pass


def fault(call):
    """The fault that this call meets, used up."""
    faults = load("faults", [])
    for one in faults:
        if one[0] in call and one[2] > 0:
            one[2] -= 1
            save("faults", faults)
            return one[1]
    return None


def create(kind, name, arguments):
    tpus = load("tpus", {})
    if name in tpus:
        sys.exit("ERROR: ALREADY_EXISTS")
    states = load("states", ["READY" if kind == "tpu-vm" else "ACTIVE"])
    label = flag(arguments, "--labels").split("=")
    tpus[name] = {"kind": kind, "states": states, "labels": dict([label])}
    save("tpus", tpus)
    workers = int(flag(arguments, "--node-count", 1)) * 2
    for worker in range(workers):
        home = CLOUD / "workers" / name / f"worker{worker}"
        (home / ".local" / "bin").mkdir(parents=True)
        shutil.copy(pathlib.Path(__file__).with_name("uv.sh"), home / ".local/bin/uv")


def describe(kind, name, arguments):
    tpus = load("tpus", {})
    owner = next((n for n in tpus if name == n or name.startswith(f"{n}-")), None)
    if owner is None:
        sys.exit(f"ERROR: (gcloud) NOT_FOUND: Resource '{name}' was not found")
    tpu, wanted = tpus[owner], flag(arguments, "--format")
    if "labels" in wanted:
        print(tpu["labels"].get("ranker_launch", ""))
    elif kind == "tpu-vm" and tpu["kind"] != kind:  # a node of a queued resource
        print("READY" if tpu["states"][0] == "ACTIVE" else "PREEMPTED")
    else:
        print(tpu["states"][0])
        if len(tpu["states"]) > 1:
            tpu["states"].pop(0)
            save("tpus", tpus)


def neighbours(port, count, index):
    """What tells jax of the other workers: Open MPI's words for Google's metadata."""
    return {
        "OMPI_MCA_orte_hnp_uri": f"{(port - 61440) * 4096}.0;tcp://127.0.0.1:1",
        "OMPI_COMM_WORLD_SIZE": str(count),
        "OMPI_COMM_WORLD_RANK": str(index),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
    }


def ssh(name, arguments):
    if load("tpus", {}).get(name, {"states": ["gone"]})["states"][0] not in (
        "ACTIVE",
        "READY",
    ):
        sys.exit(255)
    codes = []
    every = sorted((CLOUD / "workers" / name).iterdir())
    for home in homes(name, arguments):
        environment = {**os.environ, "HOME": str(home), "FAKE_HOST": home.name}
        if port := load("port", 0):
            environment |= neighbours(port, len(every), every.index(home))
        command = ["bash", "-c", flag(arguments, "--command")]
        codes.append(subprocess.run(command, cwd=home, env=environment).returncode)
    sys.exit(max(codes))


def scp(name, source, target, arguments):
    for home in homes(name, arguments):
        if source.startswith(f"{name}:"):
            shutil.copy(home / source.removeprefix(f"{name}:"), target)
        else:
            shutil.copy(source, home / target.removeprefix(f"{name}:"))


def main():
    arguments = sys.argv[1:]
    with (CLOUD / "calls").open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    call = " ".join(arguments)
    met = fault(call)
    if met == "fail":
        sys.exit("ERROR: (gcloud) RESOURCE_EXHAUSTED: no more capacity")
    if met == "blind":
        sys.exit("ERROR: (gcloud) There was a problem reaching the server: timeout")
    if arguments[0] != "compute":
        return
    _, _, kind, verb, name = arguments[:5]
    if met == "preempt":
        tpus = load("tpus", {})
        tpus[name]["states"] = [GONE[kind]]
        save("tpus", tpus)
        kill(name)
        sys.exit(255)
    if verb == "create":
        create(kind, name, arguments)
    elif verb == "describe":
        describe(kind, name, arguments)
    elif verb == "ssh":
        try:
            ssh(name, arguments)
        finally:
            if met == "drop":
                os._exit(255)
    elif verb == "scp":
        name = next(one for one in arguments[4:6] if ":" in one).split(":")[0]
        scp(name, arguments[4], arguments[5], arguments)
    elif verb == "delete":
        kill(name)
        tpus = load("tpus", {})
        del tpus[name]
        save("tpus", tpus)
        shutil.rmtree(CLOUD / "workers" / name)


if __name__ == "__main__":
    main()
