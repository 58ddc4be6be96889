"""The scripts of launch/, driven with a stand-in for gcloud (launch/gcloud.py)."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
STANDINS = ROOT / "tests" / "launch"
PLACE = ("--topology", "v5e:4x4", "--zone", "us-west4-a")


class Cloud:
    """A folder that stands for Google Cloud, and the scripts run against it."""

    def __init__(self, folder):
        self.folder = folder
        self.bucket = folder / "bucket"
        self.source = folder / "source"
        for path in (folder / "bin", self.bucket, self.source):
            path.mkdir()
        self._tool(
            "gcloud", f'exec "{sys.executable}" -ES "{STANDINS / "gcloud.py"}" "$@"'
        )
        self._tool("hostname", 'echo "${FAKE_HOST:-here}"')
        self._tool("mountpoint", 'touch "$HOME/mounted"')
        shutil.copytree(LAUNCH, self.source / "launch")
        (self.source / "pyproject.toml").write_text("")
        self.publish("flax==1", "jax==1")
        self.environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder),
            "FAKE_CLOUD": str(folder),
            "RANKER_LAUNCH_STATE": str(folder / "state"),
            "RANKER_LAUNCH_POLL": "0",
            "RANKER_LAUNCH_TRIES": "3",
            "RANKER_LAUNCH_FOLLOW": "3",
            "RANKER_STOP_SECONDS": "60",
            "RANKER_BUCKET_FOLDER": str(self.bucket),
        }

    def publish(self, *newest):
        """Sets the newest version of each package that there is."""
        (self.folder / "index").write_text("".join(f"{one}\n" for one in newest))

    def installed(self, worker, name="tpu1"):
        return (self.home(worker, name) / "installed").read_text().split()

    def _tool(self, name, text):
        path = self.folder / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)

    def start(self, script, *arguments, **environment):
        return subprocess.Popen(
            [LAUNCH / script, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={**self.environment, **environment},
        )

    def __call__(self, script, *arguments, code=0, **environment):
        process = self.start(script, *arguments, **environment)
        out, err = process.communicate(timeout=600)
        assert process.returncode == code, f"{process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(arguments, code, out, err)

    def made(self, *flags, name="tpu1", install=True):
        self("create.sh", name, *PLACE, *flags)
        if install:
            self("install.sh", name, "--source", str(self.source))
        self.forget_calls()
        return name

    def forget_calls(self):
        (self.folder / "calls").unlink(missing_ok=True)

    def calls(self, *words):
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        calls = [json.loads(line) for line in lines]
        return [one for one in calls if all(word in one for word in words)]

    def faults(self, *faults):
        (self.folder / "faults").write_text(json.dumps(faults))

    def tpus(self):
        path = self.folder / "tpus"
        return json.loads(path.read_text()) if path.exists() else {}

    def change(self, name, **fields):
        tpus = self.tpus()
        tpus.setdefault(name, {}).update(fields)
        (self.folder / "tpus").write_text(json.dumps(tpus))

    def home(self, worker=0, name="tpu1"):
        return self.folder / "workers" / name / f"worker{worker}"

    def log(self, job="job", attempt=1, worker=0):
        path = self.home(worker) / "ranker-jobs" / f"{job}.{attempt}" / "log"
        return path.read_text()

    def is_waiting(self):
        """Whether both workers are at the step where JOB waits in its first start."""
        steps = [path.read_text() for path in self.bucket.glob("*.step")]
        return steps == ["2\n", "2\n"]

    def signal(self, number):
        for path in self.folder.glob("workers/*/*/ranker-jobs/*/pid"):
            kill = os.killpg if number == signal.SIGKILL else os.kill
            kill(int(path.read_text()), number)

    def is_recorded(self, name="tpu1"):
        return (self.folder / "state" / name / "state").exists()

    def end_jobs(self):
        """Kills what still runs."""
        for path in self.folder.glob("workers/*/*/ranker-jobs/*/pid"):
            if not (path.parent / "code").exists():
                try:
                    os.killpg(int(path.read_text()), signal.SIGKILL)
                except ProcessLookupError:
                    pass
