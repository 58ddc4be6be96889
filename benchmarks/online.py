"""How long `ranker.online ab` takes on a long log, and in how much memory.

python benchmarks/online.py --events 100_000_000 --folder /tmp/log

DuckDB makes the log up: heavy-tailed users of two arms, pages and clicks with dwell, in
Parquet files. From five million events on, further files are the first under the names
of other users and pages, in every second one with the arms exchanged: copies of chance
would be a sample-ratio mismatch. `ab` then runs in a process of its own, with the usual
flags of a report; its peak resident memory is what the kernel says of it.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time

import duckdb

_PAGES = """
SELECT u, 'u' || u AS "user", 'p' || u || '-' || n AS page,
  CASE WHEN hash(u) % 2 = 0 THEN 'A' ELSE 'B' END AS arm,
  1767225600 + (hash(u, n) % 2419200)::DOUBLE + n * 0.001 AS time,
  'query ' || (hash(n, u) % 500000) AS query,
  (hash(u, n, 3) % 1000) / 1000.0 AS chance
FROM (SELECT u, unnest(range(1 + (3 * exp(sqrt(-2 * ln((hash(u, 1) % 100000 + 1)
    / 100001.0)) * cos(6.283185 * (hash(u, 2) % 100000) / 100000.0)))::BIGINT)) AS n
  FROM range({first}, {last}) AS users(u))
"""
_EVENTS = """
SELECT time, "user", page, 'page' AS event, query, arm,
  NULL::VARCHAR AS document_id, NULL::INTEGER AS position, NULL::FLOAT AS dwell
FROM pages UNION ALL
SELECT time + 5, "user", page, 'click', NULL, arm, 'd' || (hash(query) % 1000000),
  1 + (hash(page) % 10)::INTEGER, (hash(page, 1) % 90)::FLOAT
FROM pages WHERE chance < 0.6
"""
_COPY = """
SELECT * REPLACE ("user" || '-{copy}' AS "user", page || '-{copy}' AS page,
  CASE WHEN {copy} % 2 = 0 THEN arm WHEN arm = 'A' THEN 'B' ELSE 'A' END AS arm)
FROM '{first}'
"""
_EVENTS_A_FILE = 5_000_000
_EVENTS_A_USER = 9.5


def make_log(folder: pathlib.Path, events: int) -> int:
    """Writes the log's files and returns their rows."""
    folder.mkdir(parents=True, exist_ok=True)
    connection = duckdb.connect(config={"threads": "2", "memory_limit": "2GB"})
    copies = max(1, events // _EVENTS_A_FILE)
    users = int(events / copies / _EVENTS_A_USER)
    pages = _PAGES.format(first=0, last=users)
    connection.execute(f"CREATE TEMP TABLE pages AS {pages}")
    first = folder / "part-0.parquet"
    connection.execute(f"COPY ({_EVENTS}) TO '{first}' (FORMAT parquet)")
    for copy in range(1, copies):
        rows = _COPY.format(copy=copy, first=first)
        path = folder / f"part-{copy}.parquet"
        connection.execute(f"COPY ({rows}) TO '{path}' (FORMAT parquet)")
    row = connection.execute(f"SELECT count(*) FROM '{folder}/*.parquet'").fetchone()
    return row[0] if row else 0


def main() -> None:
    """Makes the log where there is none, and times the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--memory", default="1500MB")
    given = parser.parse_args()
    log = given.folder / f"log-{given.events}"
    begun = time.perf_counter()
    if not log.is_dir():
        print(f"{make_log(log, given.events):,} rows made")
    print(f"log: {time.perf_counter() - begun:.0f} s")
    out = given.folder / "ab.json"
    command = [sys.executable, "-m", "ranker.online", "ab", "--log", str(log)]
    command += ["--json", str(out), "--memory", given.memory]
    begun = time.perf_counter()
    subprocess.run(command, check=True)
    wall = time.perf_counter() - begun
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        json.dumps(
            {
                "rows": json.loads(out.read_text())["log"]["rows"],
                "wall_s": round(wall, 1),
                "cpu_s": round(used.ru_utime + used.ru_stime, 1),
                "peak_MiB": round(used.ru_maxrss / 1024),
            }
        )
    )


if __name__ == "__main__":
    main()
