"""The scripts of launch/, driven with a stand-in gcloud (gcloud.py, beside)."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest
from cloud import LAUNCH, PLACE, ROOT, STANDINS, Cloud

SCRIPTS = sorted(LAUNCH.glob("*.sh"))
ENTRIES = [path for path in SCRIPTS if path.name not in ("lib.sh", "worker.sh")]


@pytest.fixture
def cloud(tmp_path):
    found = Cloud(tmp_path)
    yield found
    found.end_jobs()


# A job with a checkpoint in the bucket: prints where it starts, waits at step 2 of its
# first start, leaves with 75 on SIGTERM, and prints that it has ended.
JOB = """
set -eu
at="$RANKER_BUCKET_FOLDER/$(hostname).step"
step=$(cat "$at" 2>/dev/null || echo 0)
first=$([ -e "$at" ] && echo no || echo yes)
trap 'echo "saved at step $step"; exit 75' TERM
echo "from step $step"
while [ "$step" -lt 4 ]; do
  step=$((step + 1))
  echo "$step" >"$at"
  while [ "$first" = yes ] && [ "$step" = 2 ]; do sleep 0.05; done
done
echo "ended at step $step"
"""
RUN = ("run.sh", "tpu1", "--job", "job", "--", "bash", "-c")


def test_shellcheck_is_clean():
    paths = [str(path) for path in (*SCRIPTS, STANDINS / "uv.sh", ROOT / ".ci" / "run")]
    command = ["shellcheck", "--external-sources", *paths]
    found = subprocess.run(command, capture_output=True, text=True, cwd=LAUNCH)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("script", ENTRIES, ids=lambda path: path.name)
def test_help_names_every_flag(script, cloud):
    text = cloud(script.name, "--help").stdout
    assert f"launch/{script.name}" in text
    source = script.read_text()
    flags = {word for word in source.split() if word.startswith("--") and word[2:]}
    parsed = {
        flag for flag in flags if f"    {flag} | " in source or f"    {flag})" in source
    }
    for flag in parsed - {"--help"}:
        assert flag in text, flag


def test_create_asks_for_a_queued_resource(cloud):
    found = cloud(
        "create.sh",
        "tpu1",
        *PLACE,
        "--spot",
        "--project=my-project",
        "--create-option=--network=my net",
        "--bucket",
        "gs://my-bucket",
    )
    (call,) = cloud.calls("create")
    assert call[:5] == ["compute", "tpus", "queued-resources", "create", "tpu1"]
    for flag in (
        "--zone=us-west4-a",
        "--project=my-project",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--node-id=tpu1",
        "--spot",
        "--async",
        "--network=my net",
    ):
        assert flag in call
    assert "left running: queued-resources tpu1" in found.stderr
    assert "launch/delete.sh tpu1" in found.stderr


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--topology", "v5p:2x2x4", "--slices", "2"],
            ["--type=v5p", "--topology=2x2x4", "--runtime-version=v2-alpha-tpuv5"]
            + ["--node-count=2", "--node-prefix=tpu1"],
        ),
        (
            ["--accelerator-type=v6e-8", "--vm"],
            ["--accelerator-type=v6e-8", "--version=v2-alpha-tpuv6e"],
        ),
        (
            ["--topology=v4:2x2x1", "--runtime-version", "mine"],
            ["--type=v4", "--runtime-version=mine"],
        ),
    ],
)
def test_create_names_any_slice(cloud, flags, expected):
    cloud("create.sh", "tpu1", "--zone", "z", *flags)
    (call,) = cloud.calls("create")
    assert set(expected) <= set(call)
    assert "--spot" not in call
    assert call[2] == ("tpu-vm" if "--vm" in flags else "queued-resources")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["Tpu", *PLACE], "cannot name a TPU"),
        (["../x", *PLACE], "cannot name a TPU"),
        (["tpu1", "--topology", "v5e:4x4"], "--zone is missing"),
        (["tpu1", "--topology", "v9:4", "--zone", "z"], "found 'v9:4'"),
        (["tpu1", "--topology", "v5e:axb", "--zone", "z"], "found 'v5e:axb'"),
        (["tpu1", "--zone", "z"], "--topology v5e:4x4"),
        (["tpu1", *PLACE, "--slices", "0"], "--slices"),
        (["tpu1", *PLACE, "--slices", "two"], "--slices: found 'two'"),
        (["tpu1", *PLACE, "--slices", "2", "--vm"], "--vm makes one slice"),
        (["tpu1", *PLACE, "--bucket", "my-bucket"], "expected gs://NAME"),
        (["tpu1", *PLACE, "--bogus"], "unknown flag --bogus"),
        (["tpu1", *PLACE, "--zone"], "--zone wants a value"),
        ([*PLACE], "NAME is missing"),
    ],
)
def test_bad_flags_make_nothing(cloud, flags, message):
    found = cloud("create.sh", *flags, code=2)
    assert message in found.stderr
    assert not cloud.calls() and not list(cloud.folder.glob("state/*"))


def test_create_waits_until_it_is_there(cloud):
    (cloud.folder / "states").write_text(
        json.dumps(["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    )
    found = cloud("create.sh", "tpu1", *PLACE)
    for state in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"):
        assert f"tpu1: {state}" in found.stderr


def test_waiting_ends_and_goes_on(cloud):
    (cloud.folder / "states").write_text(json.dumps(["WAITING_FOR_RESOURCES"] * 2))
    found = cloud("create.sh", "tpu1", *PLACE, "--wait", "1", code=1)
    assert "--resume" in found.stderr and "left running" in found.stderr
    cloud.change("tpu1", states=["ACTIVE"])
    cloud("create.sh", "tpu1", "--resume")
    assert len(cloud.calls("create")) == 1


def test_a_request_that_fails_says_so(cloud):
    (cloud.folder / "states").write_text(json.dumps(["PROVISIONING", "FAILED"]))
    found = cloud("create.sh", "tpu1", *PLACE, code=1)
    assert "tpu1 is FAILED" in found.stderr and "launch/delete.sh tpu1" in found.stderr


def test_a_refused_create_leaves_nothing(cloud):
    cloud.faults(["create", "fail", 1])
    found = cloud("create.sh", "tpu1", *PLACE, code=1)
    assert "no more capacity" in found.stderr and "tpu1 was not made" in found.stderr
    assert "left running" not in found.stderr
    assert not cloud.is_recorded()
    cloud("create.sh", "tpu1", *PLACE)


def test_another_ones_tpu_is_never_taken_over_nor_deleted(cloud):
    theirs = {"kind": "queued-resources", "states": ["ACTIVE"], "labels": {}}
    cloud.change("tpu1", **theirs)
    found = cloud("create.sh", "tpu1", *PLACE, code=1)
    assert "ALREADY_EXISTS" in found.stderr
    assert not cloud.is_recorded()
    found = cloud("delete.sh", "tpu1", code=1)
    assert "was not made here" in found.stderr
    assert not cloud.calls("delete") and "tpu1" in cloud.tpus()


def test_a_tpu_of_another_label_is_not_deleted(cloud):
    cloud.made(install=False)
    cloud.change("tpu1", labels={"ranker_launch": "another"})
    found = cloud("delete.sh", "tpu1", code=1)
    assert "made by something else" in found.stderr
    assert "gcloud compute tpus queued-resources delete tpu1" in found.stderr
    assert not cloud.calls("delete") and cloud.is_recorded()


def test_delete(cloud):
    cloud.made(install=False)
    cloud("delete.sh", "tpu1")
    (call,) = cloud.calls("delete")
    assert {"--force", "--quiet", "--zone=us-west4-a"} <= set(call)
    assert not cloud.is_recorded() and not cloud.tpus()
    assert "was not made here" in cloud("delete.sh", "tpu1", code=1).stderr


def test_a_delete_that_fails_can_be_tried_again(cloud):
    cloud.made("--vm", install=False)
    cloud.faults(["delete", "fail", 1])
    found = cloud("delete.sh", "tpu1", code=1)
    assert "still there and costs money" in found.stderr
    assert "left running: tpu-vm tpu1" in found.stderr
    assert cloud.is_recorded()
    cloud("delete.sh", "tpu1")
    assert not cloud.tpus()


def test_nothing_is_deleted_or_forgotten_when_gcloud_cannot_tell(cloud):
    cloud.made(install=False)
    cloud.faults(["describe", "blind", 1])
    found = cloud("delete.sh", "tpu1", code=1)
    assert "nothing was deleted" in found.stderr and cloud.is_recorded()
    assert not cloud.calls("delete")


def test_deleting_what_is_gone_only_clears_the_record(cloud):
    cloud.made(install=False)
    (cloud.folder / "tpus").write_text("{}")
    assert "gone already" in cloud("delete.sh", "tpu1").stderr
    assert not cloud.is_recorded()


def test_install_reaches_every_worker_of_every_slice(cloud):
    cloud.made("--slices", "2", "--bucket", "gs://my-bucket", install=False)
    cloud("install.sh", "tpu1", "--source", str(cloud.source), "--extras", "tpu,track")
    calls = cloud.calls("scp") + cloud.calls("ssh")
    sent, asked = [call for call in calls if "--node=all" not in call]
    assert "tpu1:ranker-versions.txt" in sent and "resolve tpu,track" in asked[-1]
    for worker in range(4):
        home = cloud.home(worker)
        assert (home / "ranker" / "pyproject.toml").exists()
        calls = (home / "uv-calls").read_text()
        assert f"{home}/ranker[tpu,track]" in calls
        assert "--python 3.12" in calls
        assert ("launch/constraints.txt" in calls) == (worker == 0)  # it resolves
        assert cloud.installed(worker) == ["flax==1", "jax==1"]
        assert (home / "mounted").exists()
    assert not list(cloud.bucket.iterdir())  # the probe has gone


def test_every_restart_has_the_versions_of_the_first_install(cloud):
    cloud.made("--bucket", "gs://my-bucket", "--spot")
    cloud.publish("flax==2", "jax==1", "new==1")
    cloud.faults(["follow", "preempt", 1])
    cloud(*RUN, JOB)
    assert cloud.calls("create")  # it was taken away, and another one made
    for worker in range(2):
        assert cloud.installed(worker) == ["flax==1", "jax==1"]
    # What a changed checkout takes in addition is new; the rest stays.
    install = ("install.sh", "tpu1", "--source", str(cloud.source))
    said = cloud(*install).stderr
    assert cloud.installed(1) == ["flax==1", "jax==1", "new==1"]
    kept = cloud.folder / "state" / "tpu1" / "versions.txt"
    assert str(kept) in said and kept.read_text().split() == cloud.installed(1)
    cloud(*install, "--upgrade")
    assert cloud.installed(1) == ["flax==2", "jax==1", "new==1"]
    # Another TPU of this name begins anew.
    cloud("delete.sh", "tpu1")
    cloud.publish("flax==3")
    cloud.made()
    assert cloud.installed(0) == cloud.installed(1) == ["flax==3"]


def test_versions_that_cannot_be_resolved_install_nothing(cloud):
    cloud.made(install=False)
    cloud.faults(["worker.sh resolve", "fail", 3])
    found = cloud("install.sh", "tpu1", "--source", str(cloud.source), code=1)
    assert "no answer from tpu1 after 3 tries" in found.stderr
    assert not (cloud.home() / "installed").exists()


def test_install_packs_what_git_would_take(cloud):
    (cloud.source / ".gitignore").write_text("runs/\n")
    (cloud.source / "runs").mkdir()
    (cloud.source / "runs" / "big").write_text("x")
    (cloud.source / "name with 'quotes'").write_text("x")
    subprocess.run(["git", "init", "-q", cloud.source], check=True)
    cloud.made()
    there = {path.name for path in (cloud.home() / "ranker").iterdir()}
    assert "name with 'quotes'" in there and "runs" not in there and ".git" not in there


def test_install_refuses_what_is_no_checkout(cloud):
    cloud.made(install=False)
    found = cloud("install.sh", "tpu1", "--source", str(cloud.bucket), code=1)
    assert "no pyproject.toml" in found.stderr
    cloud.faults(["scp", "fail", 3])
    found = cloud("install.sh", "tpu1", "--source", str(cloud.source), code=1)
    assert "no answer from tpu1 after 3 tries" in found.stderr


AWKWARD = [
    "two words",
    "it's",
    'say "hi"',
    "$HOME `id` $(id)",
    "back\\slash",
    "",
    "*",
    "~",
    "a;b&c|d>e",
    "line\nbreak",
    "-n",
    "!!",
    "ünï 🦄 שלום",
]


def test_arguments_reach_the_workers_intact(cloud):
    cloud.made()
    show = "import json, sys; print(json.dumps(sys.argv[1:]))"
    found = cloud(*RUN[:-2], "python3", "-c", show, *AWKWARD)
    for worker in range(2):
        assert json.loads(cloud.log(worker=worker)) == AWKWARD
    assert json.loads(found.stdout) == AWKWARD  # and the log comes back
    kept = cloud.folder / "state" / "tpu1" / "jobs" / "job"
    assert json.loads((kept / "log.1").read_text()) == AWKWARD
    assert (kept / "command").read_text().split("\0")[3:-1] == AWKWARD


def test_a_job_that_fails_ends_with_its_code(cloud):
    cloud.made("--bucket", "gs://my-bucket")
    found = cloud(*RUN, "[ $(hostname) = worker1 ] && exit 3; sleep 300", code=3)
    assert "failed with exit code 3" in found.stderr
    assert "left running" in found.stderr
    assert not cloud.calls("create")
    # The worker that did not fail does not hold its chips.
    code = cloud.home(0) / "ranker-jobs" / "job.1" / "code"
    assert int(code.read_text()) == 128 + signal.SIGTERM


def test_a_preempted_job_goes_on_from_its_checkpoint_on_a_new_tpu(cloud):
    cloud.made("--bucket", "gs://my-bucket", "--spot")
    cloud.faults(["follow", "preempt", 1], ["create", "fail", 1])
    found = cloud(*RUN, JOB)
    assert "was taken away (SUSPENDED)" in found.stderr
    assert "from step 2" in found.stdout and "ended at step 4" in found.stdout
    (deleted,) = cloud.calls("delete")
    assert "--force" in deleted
    first, second = cloud.calls("create")  # the first is refused
    assert first == second and "--spot" in second
    assert cloud.is_recorded()
    assert len(cloud.tpus()) == 1


def test_a_preempted_job_goes_on_on_a_smaller_slice_when_there_is_no_other(cloud):
    cloud.made("--bucket", "gs://my-bucket", "--spot")
    cloud.faults(["follow", "preempt", 1], ["v5litepod-16", "fail", 1])
    smaller = ("--smaller", "v5e:2x4", "--smaller=v5e:2x2", "--patience", "0")
    found = cloud(*RUN[:2], *smaller, *RUN[2:], JOB)
    assert "asks for v5e:2x4 in place of what tpu1 was" in found.stderr
    assert "from step 2" in found.stdout and "ended at step 4" in found.stdout
    first, second = cloud.calls("create")
    assert "--accelerator-type=v5litepod-16" in first
    changed = [one.replace("v5litepod-16", "v5litepod-8") for one in first]
    assert changed == second
    # The account knows what there is now, so a later job restarts on that.
    assert "v5litepod-8" in (cloud.folder / "state" / "tpu1" / "state").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--smaller", "v5e:4x8"], "v5e:4x8 has 32 chips and what comes before it 16"),
        (["--smaller", "v5e:4x4"], "has 16 chips and what comes before it 16"),
        (
            ["--smaller=v5e:2x2", "--smaller=v5e:2x4"],
            "v5e:2x4 has 8 chips and what comes before it 4",
        ),
        (["--smaller", "v6e:2x2"], "v6e:2x2 is a v6e, and tpu1 is a v5e"),
        (["--smaller", "v5e"], "--smaller: found 'v5e', expected"),
        (["--patience", "soon"], "--patience: found 'soon'"),
    ],
)
def test_a_shape_that_is_not_smaller_is_refused(cloud, flags, message):
    cloud.made("--bucket", "gs://my-bucket", install=False)
    found = cloud(*RUN[:2], *flags, *RUN[2:], JOB, code=2)
    assert message in found.stderr
    assert not cloud.calls("ssh")


def test_a_job_that_saved_and_left_is_started_again_in_place(cloud):
    cloud.made("--bucket", "gs://my-bucket", "--vm")
    process = cloud.start(*RUN, JOB)
    wait_for(cloud.is_waiting)
    cloud.signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "exit code 75" in err and "saved at step 2" in out
    assert "from step 2" in out and "ended at step 4" in out
    assert not cloud.calls("create") and not cloud.calls("delete")


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def test_a_job_without_a_bucket_is_not_started_on_a_new_tpu(cloud):
    cloud.made("--spot")
    cloud.faults(["follow", "preempt", 1])
    found = cloud(*RUN, JOB, code=1)
    assert "no bucket" in found.stderr and "it is not started again" in found.stderr
    assert not cloud.calls("create") and not cloud.calls("delete")


def test_the_number_of_restarts_is_bounded(cloud):
    cloud.made("--bucket", "gs://my-bucket")
    arguments = [*RUN[:2], "--max-restarts", "1", *RUN[2:], "exit 75"]
    found = cloud(*arguments, code=1)
    assert "interrupted 2 times, more than --max-restarts 1" in found.stderr


def test_a_lost_connection_loses_neither_job_nor_output(cloud):
    cloud.made()
    # The answer to the start is lost, then the log breaks off, then a look fails.
    cloud.faults(
        ["worker.sh start", "drop", 1],
        ["worker.sh follow", "drop", 1],
        ["worker.sh code", "drop", 2],
    )
    found = cloud(*RUN, 'for i in 1 2 3; do echo "line $i"; done; echo x >>started')
    assert found.stdout.splitlines() == ["line 1", "line 2", "line 3"]
    started = cloud.home() / "ranker" / "started"
    assert started.read_text() == "x\n"  # once, though asked twice


def test_a_worker_that_lost_its_job_has_it_started_again(cloud):
    cloud.made("--bucket", "gs://my-bucket")
    process = cloud.start(*RUN, JOB)
    wait_for(cloud.is_waiting)
    cloud.signal(signal.SIGKILL)  # as the kernel does when memory is out
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "a worker has lost it" in err and "ended at step 4" in out


def test_interrupted_watching_says_what_runs_and_can_be_taken_up(cloud):
    cloud.made()
    go = cloud.folder / "go"
    process = cloud.start(*RUN, f"echo begun; until [ -e {go} ]; do sleep 0.1; done")
    wait_for(lambda: "begun" in cloud.log())
    out, err = interrupt(process)
    assert process.returncode == 130
    assert "the job job may still run" in err and "left running" in err
    go.touch()
    found = cloud("run.sh", "tpu1", "--attach")
    assert "job job is done" in found.stderr


def interrupt(process):
    """Presses Ctrl-C until the script ends: bash can lose one between commands."""
    for _ in range(60):
        # It reaches what the script runs as well.
        for pid in [process.pid, *children(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=2)
    process.kill()
    raise AssertionError(process.communicate())


def children(pid):
    path = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
    try:
        direct = [int(word) for word in path.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return []
    return [*direct, *(one for child in direct for one in children(child))]


def test_stop_ends_a_job_everywhere(cloud):
    cloud.made()
    process = cloud.start(*RUN[:2], "--max-restarts", "0", *RUN[2:], JOB)
    wait_for(cloud.is_waiting)
    cloud("stop.sh", "tpu1")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1
    for worker in range(2):
        code = cloud.home(worker) / "ranker-jobs" / "job.1" / "code"
        assert code.read_text() == "75\n"


def test_run_wants_a_command_and_a_tpu(cloud):
    assert "was not made here" in cloud(*RUN, "true", code=1).stderr
    cloud.made(install=False)
    assert "command is missing" in cloud("run.sh", "tpu1", code=2).stderr
    found = cloud("run.sh", "tpu1", "python", "-m", "ranker.train", code=2)
    assert "the command comes after it" in found.stderr
    found = cloud("run.sh", "tpu1", "--job", "../x", "--", "true", code=2)
    assert "--job" in found.stderr
    assert "no job was started" in cloud("run.sh", "tpu1", "--attach", code=1).stderr


def test_the_record_is_data_and_never_run(cloud):
    cloud.made(install=False)
    path = cloud.folder / "state" / "tpu1" / "state"
    path.write_text(path.read_text() + "$(touch pwned)=`touch pwned`\n")
    assert "unknown line" in cloud("list.sh", code=1).stderr
    path.write_text("id=\n")
    assert "is damaged" in cloud("delete.sh", "tpu1", code=1).stderr
    assert not (cloud.folder / "pwned").exists()


def test_list(cloud):
    assert "nothing that was made here" in cloud("list.sh").stderr
    cloud.made(install=False)
    cloud.made("--vm", name="tpu2", install=False)
    lines = cloud("list.sh").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["tpu1", "tpu2"]
    assert "ACTIVE" in lines[0] and "READY" in lines[1]


def test_copy(cloud):
    cloud.made()
    (cloud.folder / "a b").write_text("x")
    cloud("copy.sh", "a b", "gs://bucket/it's")
    (call,) = cloud.calls("storage")
    assert call == ["storage", "cp", "--recursive", "a b", "gs://bucket/it's"]
    cloud("copy.sh", "a b", "tpu1:over there")
    assert all((cloud.home(worker) / "over there").exists() for worker in range(2))
    (cloud.home() / "result").write_text("42")
    cloud("copy.sh", "tpu1:result", "here")
    assert (cloud.folder / "here").read_text() == "42"
    cloud.forget_calls()
    cloud("copy.sh", "tpu1:runs/a b", "gs://bucket/x")  # the worker calls gcloud
    call = cloud.calls("ssh")[0]
    assert "--command=gcloud storage cp --recursive 'runs/a b' gs://bucket/x" in call
    assert "--worker=0" in call
    assert cloud.calls("storage", "runs/a b")
    cloud("copy.sh", "gs://bucket/x", "tpu1:data/new")
    assert "--worker=all" in cloud.calls("ssh")[-1]


def test_copy_refuses(cloud):
    assert "no such file" in cloud("copy.sh", "nothing", "gs://b/x", code=1).stderr
    assert "both paths are here" in cloud("copy.sh", "a", "b", code=2).stderr
    assert "expected two" in cloud("copy.sh", "a", code=2).stderr
    assert "was not made here" in cloud("copy.sh", "x1:a", "gs://b/x", code=1).stderr
    cloud.faults(["storage", "fail", 1])
    (cloud.folder / "a").touch()
    assert "was not copied" in cloud("copy.sh", "a", "gs://b/x", code=1).stderr


TRAIN = ("train.sh", "tpu1", *PLACE, "--bucket", "gs://my-bucket", "--spot")


def test_train_goes_from_nothing_to_nothing_left(cloud):
    script = cloud.source / "launch"
    shutil.copytree(script, cloud.folder / "launch")
    (cloud.folder / "pyproject.toml").write_text("")
    process = subprocess.run(
        [cloud.folder / "launch" / "train.sh", *TRAIN[1:], "--", "echo", "a  b"],
        capture_output=True,
        text=True,
        env=cloud.environment,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "a  b"
    assert not cloud.tpus() and not cloud.is_recorded()


def test_dry_run_prints_every_command_and_does_nothing(cloud):
    found = cloud(*TRAIN, "--slices=2", "--dry-run", "--", "echo", "it's $HOME")
    commands = found.stdout.splitlines()
    assert all(line.startswith("gcloud ") for line in commands), commands
    verbs = [line.split()[4] for line in commands if line.split()[3] != "tpu-vm"]
    assert [v for v in verbs if v != "describe"] == [
        *("create", "scp", "scp", "ssh", "scp", "ssh", "ssh", "ssh", "ssh", "delete")
    ]
    # Printed so that a shell that is given the line gives gcloud the same words.
    (start,) = [line for line in commands if "worker.sh start" in line]
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {start}"], capture_output=True, text=True
    ).stdout.split("\0")
    (command,) = [word for word in words if word.startswith("--command=")]
    again = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command.removeprefix('--command=')}"],
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    assert again[-3:-1] == ["echo", "it's $HOME"]
    assert "done" not in found.stderr
    assert not cloud.calls() and not list(cloud.folder.glob("state/*"))


def test_a_dry_run_of_one_script_changes_nothing(cloud):
    found = cloud("create.sh", "tpu1", *PLACE, "--dry-run")
    assert "queued-resources create tpu1" in found.stdout
    assert not cloud.is_recorded()
    cloud.made()
    for script, *arguments in (
        ("install.sh", "tpu1"),
        RUN + ("true",),
        ("copy.sh", "tpu1:a", "gs://b/c"),
        ("list.sh",),
        ("delete.sh", "tpu1"),
    ):
        found = (
            cloud(script, *arguments, "--dry-run")
            if script != "run.sh"
            else cloud(script, "tpu1", "--dry-run", "--", "true")
        )
        assert found.stdout.startswith("gcloud "), script
    assert not cloud.calls()
    assert cloud.is_recorded() and "tpu1" in cloud.tpus()


def test_versions_are_pinned_alike():
    pins = (LAUNCH / "constraints.txt").read_text()
    page = (ROOT / "docs" / "tpu.md").read_text()
    for line in pins.splitlines():
        if "==" in line and not line.startswith("jaxlib"):
            assert f"`{line}`" in page, line


def test_the_page_names_flags_that_exist():
    page = (ROOT / "docs" / "tpu.md").read_text()
    for script in ENTRIES:
        assert f"launch/{script.name}" in page, script.name
