"""The click rules by DuckDB, by Beam on one process, and by Beam on two.

    python benchmarks/beam_clicks.py /tmp/beam --rows 1000000

Needs `ranker[beam]`. Makes the log once, as prepare_scale does, runs each engine in a
process of its own, and compares the digests of what they make. Time on the clock tells
of the engines' ratio only where nothing else runs.
"""

import argparse
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import time

from prepare_scale import make

from ranker import config
from ranker.data import click_engine
from ranker.data.clicks import Digest
from ranker.data.sources import Files

_SPLITS = ("train", "dev")
_TWO = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
_ENGINES = {
    "duckdb": [],
    "beam, 1 process": ["--runner=DirectRunner"],
    "beam, 2 processes": ["--runner=DirectRunner", *_TWO],
}


def measure(folder: pathlib.Path, options: list[str]) -> None:
    """Applies the rules, and prints time, memory and digests."""
    data = config.Data(path=str(folder), click_log=str(folder / "log"))
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    start = time.monotonic()
    source = Files(data)
    source.bind(list(source.documents()))
    if options:
        from ranker.data.beam import make_engine

        table = make_engine(options)(source, config.Text(), work)
        digests = [table.digest(split) for split in _SPLITS]
    else:
        with click_engine.open_engine(work) as connection:
            found = source.click_table(connection)
            digests = []
            for split in _SPLITS:
                digest = Digest()
                for one in found.examples(split):
                    digest.add(one)
                digests.append(digest.hexdigest())
    seconds = time.monotonic() - start
    used = [
        resource.getrusage(who)
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    print(
        json.dumps(
            {
                "seconds": round(seconds, 1),
                "processor_seconds": round(sum(u.ru_utime + u.ru_stime for u in used)),
                "peak_mib": max(one.ru_maxrss for one in used) // 1024,
                "digests": digests,
            }
        )
    )


def main() -> None:
    """Makes what is missing, and measures each engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--engine", choices=_ENGINES, help="what a process does")
    flags = parser.parse_args()
    if flags.engine:
        measure(flags.folder, _ENGINES[flags.engine])
        return
    if not (flags.folder / "made.json").exists():
        make(flags.folder, 2000, flags.rows)
    found = set()
    for engine in _ENGINES:
        command = [sys.executable, __file__, str(flags.folder), "--engine", engine]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        line = done.stdout.strip().splitlines()[-1]
        print(f"{engine}: {line}", flush=True)
        found.add(str(json.loads(line)["digests"]))
    print("equal digests" if len(found) == 1 else f"digests differ: {found}")
    raise SystemExit(len(found) > 1)


if __name__ == "__main__":
    main()
