"""The command `ranker` is `python -m ranker.NAME`."""

import subprocess
import sys

import pytest

from ranker import __main__ as command


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True
    )


def test_every_entry_is_listed_with_what_it_does(capsys):
    command.main([])
    shown = capsys.readouterr().out
    for name in ("run", "train", "score", "evaluate", "export", "check", "serve"):
        assert f"  {name:<10}" in shown, name
    assert "manifests" not in shown and "__init__" not in shown


def test_a_command_is_the_entry():
    ours, theirs = run("ranker", "export", "--help"), run("ranker.export", "--help")
    assert ours.returncode == theirs.returncode == 0
    # The usage line alone says how it was called.
    assert ours.stdout.splitlines()[1:] == theirs.stdout.splitlines()[1:]


def test_a_wrong_command_names_the_nearest():
    with pytest.raises(SystemExit, match="no command 'trian'; did you mean train"):
        command.main(["trian"])
