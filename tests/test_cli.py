"""Several processes that make one run: how they come together."""

import os
import pathlib
import socket
import subprocess
import sys
import textwrap

import pytest

from ranker import cli, config, manifests
from ranker.errors import ConfigError

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROGRAM = textwrap.dedent("""
    import pathlib, sys
    from ranker import cli, config

    def call():
        import jax
        return lambda settings, workdir: print(
            jax.process_index(), "of", jax.process_count(), flush=True
        )

    cli.main(config.Export, call, "", sys.argv[1:])
""")


def test_processes_come_together(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = str(ROOT / "configs" / "export.py")
    arguments = ["--config", file, "--workdir", str(tmp_path)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "RANKER_PROCESSES": f"127.0.0.1:{port},2,{index}"},
        )
        for index in range(2)
    ]
    said = [process.communicate(timeout=300)[0].strip() for process in running]
    assert said == ["0 of 2", "1 of 2"]


@pytest.mark.parametrize("value", ["yes", "host:1", "host:1,two,0", "host:1,2,-1", ","])
def test_what_does_not_name_processes_is_refused(value):
    with pytest.raises(ConfigError, match=r"expected auto, or HOST:PORT,COUNT,INDEX"):
        cli.join_processes(value)


def test_a_stage_that_is_finished_already_says_so(tmp_path, capsys):
    manifest = manifests.Manifest(kind="export", settings={}, inputs={})
    flags = ["--config", str(ROOT / "configs" / "export.py"), "--workdir"]
    writes = [lambda: manifest.finish(tmp_path / "export"), lambda: None]

    def call():
        write = writes.pop(0)
        return lambda settings, workdir: write()

    cli.main(config.Export, call, "", [*flags, str(tmp_path)])
    assert capsys.readouterr().out == ""
    cli.main(config.Export, call, "", [*flags, str(tmp_path)])
    said = f"{tmp_path / 'export'} is finished already: nothing was done\n"
    assert capsys.readouterr().out == said


def test_a_flag_that_is_misspelt_is_shown(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(config.Export, lambda: print, "", ["--confg", "configs/export.py"])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert "error: --config is missing" in told and "(found --confg configs" in told
