"""What the entries share: flags in, one call, and errors as sentences."""

import argparse
import errno
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ranker import config
from ranker.errors import Stopped, UserError

AGAIN = 75  # exit code (EX_TEMPFAIL): stopped, and the same command resumes
_DISK = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room in your quota",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable, and readable",
    errno.EPERM: "make it writable",
}


def main(
    of: type,
    call: Callable[[], Callable[[Any, pathlib.Path], Any]],
    description: str,
    arguments: Sequence[str] | None = None,
    *,
    each: Sequence[Sequence[str]] = (),
) -> None:
    """Parses `--config FILE --workdir DIR --config.FIELD=VALUE ...` and makes one call.

    Args:
      of: config class that this entry takes.
      call: returns the function to call; imports it, so that `--help` need not wait for
        jax.
      description: of the entry, for `--help` without a config.
      arguments: command line; default `sys.argv[1:]`.
      each: further flags, of a config each; the function is then given a list of them.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        description=description, add_help=False, allow_abbrev=False
    )
    parser.add_argument("--config", help="config file, e.g. configs/sft.py[:variant]")
    parser.add_argument("--workdir", help="folder with all stages", type=pathlib.Path)
    if of is not config.Pipeline:
        parser.add_argument(
            "--stage",
            default="",
            help="stage to run, if the config file is a whole pipeline",
        )
    known, rest = parser.parse_known_args(arguments)
    if known.config is None:
        parser.print_help()
        print("\n--config FILE --help shows every field with its value and unit.")
        if "--help" in rest or "-h" in rest:
            raise SystemExit(0)
        found = f" (found {' '.join(rest)})" if rest else ""
        print(
            f"error: --config is missing: a file, such as configs/sft.py{found}",
            file=sys.stderr,
        )
        raise SystemExit(2)
    signal.signal(signal.SIGTERM, _stop)

    def run() -> None:
        def load(more: Sequence[str], said: bool = False) -> Any:
            settings = config.load(
                known.config,
                [*rest, *more],
                of=of,
                stage=getattr(known, "stage", ""),
                start=lambda default: _as_prepared(default, known.workdir, said=said),
            )
            config.check_given(settings, known.config)
            return settings

        settings: Any = load(each[0]) if each else load(())
        if each:
            settings = [settings, *(load(more, said=True) for more in each[1:])]
        if known.workdir is None:
            raise config.ConfigError(
                "--workdir is missing: the folder that all stages write to, e.g. "
                "--workdir runs/first"
            )
        function = call()
        from ranker import processes

        join_processes(os.environ.get("RANKER_PROCESSES", ""))
        before = _finished(settings, known.workdir)
        # One workdir may look different from several hosts.
        function(processes.first(lambda: settings), known.workdir)
        if before and before == _finished(settings, known.workdir):
            if processes.leads():
                print(f"{before[0]} is finished already: nothing was done", flush=True)

    sentences(run, where=known.workdir)


def _finished(stage: Any, workdir: pathlib.Path) -> tuple[pathlib.Path, int] | None:
    """The folder of a stage that is finished, and when that was recorded."""
    if isinstance(stage, config.Train | config.Score):
        folder = workdir / stage.name
    elif isinstance(stage, config.Export):
        folder = workdir / stage.folder
    else:
        return None
    from ranker import manifests  # here, so that --help need not wait for jax

    found = manifests.read_manifest(folder)
    if found is None or not found.done:
        return None
    return folder, (folder / manifests.FILE).stat().st_mtime_ns


def _as_prepared(stage: Any, workdir: pathlib.Path | None, *, said: bool) -> Any:
    """A stage with the data and text that its workdir was prepared with, if it was.

    Flags are applied afterwards, so that they win. A pipeline says what is prepared.
    """
    if workdir is None or isinstance(stage, config.Pipeline):
        return stage
    from ranker import manifests  # here, so that --help need not wait for jax

    found = manifests.read_manifest(workdir / manifests.PREPARE)
    if found is None:
        return stage
    if not found.done:
        return stage
    told = manifests.PrepareFacts.of(found.facts).config
    fields = {name: config.from_dict(value) for name, value in told.items()}
    differs = any(getattr(stage, name) != value for name, value in fields.items())
    if differs and not said:
        print(
            f"data and text are those prepared in {workdir / manifests.PREPARE}; "
            "--config.data.FIELD and --config.text.FIELD change them",
            flush=True,
        )
    return config.replace(stage, **fields)


def sentences(call: Callable[[], Any], *, where: pathlib.Path | None = None) -> None:
    """Makes the call; ends with a sentence where a user's mistake stops it.

    Args:
      call: what the entry does.
      where: what to name when the disk refuses a file without a name.
    """
    # torch need not be there: of transformers only tokenizers are used.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        call()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Stopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        raise SystemExit(AGAIN) from None
    except (UserError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from None
    except OSError as error:
        if error.errno in _DISK:
            raise SystemExit(
                f"error: {error.filename or where}: {error.strerror}; "
                f"{_DISK[error.errno]}, and run the same command again: what is done "
                "is kept"
            ) from None
        raise


def join_processes(processes: str) -> None:
    """Makes this process one of several that do one run together.

    Args:
      processes: "" for a run of one process; "auto" where jax finds the others by
        itself (Cloud TPU, Slurm, Open MPI); or HOST:PORT,COUNT,INDEX, the address of
        the first process, their number, and which of them this is.

    Raises:
      ConfigError: when they do not come together.
    """
    if not processes:
        return
    import jax

    address, *numbers = processes.split(",")
    how = f"RANKER_PROCESSES={processes!r}"
    if processes != "auto" and (
        len(numbers) != 2 or not all(number.isdecimal() for number in numbers)
    ):
        raise config.ConfigError(
            f"{how}: expected auto, or HOST:PORT,COUNT,INDEX such as 10.0.0.2:8476,4,0"
        )
    try:
        if processes == "auto":
            jax.distributed.initialize()
        else:
            count, index = map(int, numbers)
            jax.distributed.initialize(address, count, index)
    except (RuntimeError, ValueError) as error:
        raise config.ConfigError(
            f"{how}: the processes did not come together ({error}); leave the variable "
            "out for a run of one process"
        ) from error


def _stop(*_) -> None:
    """SIGTERM, where nothing better can be done: training saves first."""
    raise Stopped("by SIGTERM; the same command resumes from what is done")
