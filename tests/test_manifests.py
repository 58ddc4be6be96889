"""What a stage's folder says of itself: sealed, locked, and never thrown away."""

import dataclasses
import subprocess
import sys

import pytest

from ranker import manifests
from ranker.errors import StageError


def test_a_second_run_is_told_who_works_there(tmp_path):
    manifest = manifests.Manifest(kind="sft", settings={}, inputs={})
    code = (
        "import sys, pathlib; from ranker import manifests\n"
        "with manifests.lock(pathlib.Path(sys.argv[1]), 'sft'):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,  # open as long as this process needs the other
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None
    with other, other.stdout:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(StageError, match=f"worked on by process {other.pid} on"):
            with manifests.claim(tmp_path / "sft", manifest, replace=True):
                pass
        other.kill()
    with manifests.claim(tmp_path / "sft", manifest, replace=True) as todo:
        assert todo  # the lock went with the process


def test_a_replaced_stage_is_moved_aside_with_all_that_it_holds(tmp_path, capsys):
    folder = tmp_path / "sft"
    old = manifests.Manifest(kind="sft", settings={"steps": 1}, inputs={})
    new = manifests.Manifest(kind="sft", settings={"steps": 2}, inputs={})
    old.finish(folder)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "weights").write_text("hours of work")
    with pytest.raises(StageError, match="other settings: steps: 1 -> 2"):
        manifests.is_done(folder, new)
    assert manifests.is_done(folder, old)
    assert not manifests.is_done(folder, new, replace=True) and not folder.exists()
    aside = tmp_path / f"sft.{old.key}"
    assert (aside / "checkpoints" / "weights").read_text() == "hours of work"
    assert manifests.load(aside) == dataclasses.replace(old, done=True)
    assert f"runs again (steps: 1 -> 2); the old one is {aside}" in (
        capsys.readouterr().out
    )


def test_manifests_are_sealed(tmp_path):
    manifests.Manifest(kind="sft", settings={"a": 1}, inputs={}).finish(tmp_path, x=0.5)
    path = tmp_path / "manifest.json"
    assert manifests.load(tmp_path).facts == {"x": 0.5}
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(StageError, match="its digest does not fit"):
        manifests.load(tmp_path)
