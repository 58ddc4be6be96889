"""Scores pairs with the teacher, as a job that processes can share and resume.

    python -m ranker.score --config configs/score.py --workdir DIR
        [--config.FIELD=VALUE ...]        scores what is missing
        --verify                          proves the scores against their input
    python -m ranker.score status FOLDER  how far the job is, its speed and its cost
    python -m ranker.score verify FOLDER  proves the scores without their input
        [--cache DIR]                     local folder for 8 bytes a pair meanwhile

FOLDER is where the chunks are: WORKDIR/scores, or what --config.output names.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from ranker import cli, config

_DESCRIPTION = "Scores pairs with the teacher; see also: status FOLDER, verify FOLDER."


def _call(prove: bool):
    def load():
        from ranker.training import score as teacher

        if not prove:
            return teacher.score_chunks

        def verify(settings, workdir):
            _show_proof(teacher.verify_chunks(settings, workdir))

        return verify

    return load


def _status(folder: str, cache: str) -> None:
    from rich.console import Console

    from ranker.scoring.job import load_job
    from ranker.scoring.status import read_status, status_lines

    del cache
    job = load_job(folder)
    for line in status_lines(job, read_status(job)):
        Console(highlight=False, soft_wrap=True).print(line, markup=False)


def _verify(folder: str, cache: str) -> None:
    from ranker.scoring.job import load_job
    from ranker.scoring.proof import verify

    _show_proof(verify(load_job(folder), progress=_shown, cache=cache))


def _shown(done: int) -> None:
    if done % 1000 == 0:
        print(f"{done:,} chunks verified", flush=True)


def _show_proof(proof) -> None:
    for one in proof.quarantined:
        line = json.dumps(dataclasses.asdict(one), ensure_ascii=False)
        print(f"set aside: {line}")
    print(
        f"verified: {proof.pairs:,} pairs have exactly one finite score each, "
        f"{len(proof.quarantined):,} were set aside; mean {proof.mean:.4f}, standard "
        f"deviation {proof.std:.4f}, from {proof.min:.4f} to {proof.max:.4f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Scores, tells how far a job is, or proves it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"status": _status, "verify": _verify}
    if arguments and arguments[0] in commands:
        parser = argparse.ArgumentParser(
            prog=f"python -m ranker.score {arguments[0]}", allow_abbrev=False
        )
        parser.add_argument("folder", help="folder of the job, such as WORKDIR/scores")
        if arguments[0] == "verify":
            help = "local folder for 8 bytes per pair; default: the system's"
            parser.add_argument("--cache", default="", help=help)
        flags = parser.parse_args(arguments[1:])
        call = commands[arguments[0]]
        cli.sentences(lambda: call(flags.folder, getattr(flags, "cache", "")))
        return
    prove = "--verify" in arguments
    rest = [one for one in arguments if one != "--verify"]
    cli.main(config.Score, _call(prove), _DESCRIPTION, rest)


if __name__ == "__main__":
    main()
