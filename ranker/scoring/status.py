"""How far a scoring job is, how fast it runs, and what it costs."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ranker.manifests import ScoreFacts
from ranker.scoring.job import Job

_RECENT = 900.0  # seconds that the present speed is taken over
_SKEW = 60.0  # seconds that another clock may be ahead of ours
_PAUSE = 60.0  # seconds between two chunks that count as work
Time = tuple[float, float, int]  # of a chunk: when it was finished, seconds, pairs


@dataclass(frozen=True)
class Status:
    """How far a job is, and what it costs."""

    chunks: int
    done: int
    pairs: int
    pairs_done: int
    quarantined: int
    pairs_per_second: float  # at present, over all processes; 0: nothing to go by
    eta: float  # seconds; nan: nothing to go by
    chip_hours: float  # spent on the chunks that are done
    chip_hours_total: float  # of the whole job, at the same cost a pair; nan: unknown
    codes: tuple[str, ...]  # digests of the code that has written chunks
    missing: tuple[str, ...]
    stray: tuple[str, ...]


def read_status(job: Job) -> Status:
    """Reads every receipt.

    Raises:
      DataError: at a damaged receipt.
    """
    missing = job.missing()
    left = set(missing)
    done = [number for number in range(len(job.chunks)) if number not in left]
    pairs_done = quarantined = 0
    spent = 0.0
    codes: dict[str, None] = {}
    times: dict[str, list[Time]] = {}
    for number, one in zip(done, job.receipts(done), strict=True):
        pairs_done += job.chunks[number].pairs
        quarantined += len(one["quarantined"])
        spent += one["seconds"] * one["chips"] / 3600
        codes[one["code"]] = None
        time_of = (one["finished"], one["seconds"], one["pairs"])
        times.setdefault(str(one.get("host")), []).append(time_of)
    rate = present_rate(times, now=time.time())
    rest = job.pairs - pairs_done
    return Status(
        chunks=len(job.chunks),
        done=len(done),
        pairs=job.pairs,
        pairs_done=pairs_done,
        quarantined=quarantined,
        pairs_per_second=rate,
        eta=rest / rate if rate else (0.0 if not rest else math.nan),
        chip_hours=spent,
        chip_hours_total=spent / pairs_done * job.pairs if pairs_done else math.nan,
        codes=tuple(codes),
        missing=tuple(job.name(number) for number in missing),
        stray=tuple(job.stray()),
    )


def status_lines(job: Job, found: Status) -> list[str]:
    """The status in lines for a reader."""
    facts = ScoreFacts.of(job.manifest.facts)
    teacher = facts.teacher_facts or {}
    lines = [
        f"teacher     {facts.teacher} ({job.manifest.inputs[facts.teacher]}), "
        f"tokenizer {str(teacher.get('tokenizer'))[:16]}, template "
        f"{str(teacher.get('template'))[:16]}",
        f"chunks      {found.done:,} of {found.chunks:,} done, "
        f"{len(found.missing):,} missing",
        f"pairs       {found.pairs_done:,} of {found.pairs:,} done, "
        f"{found.quarantined:,} set aside",
        f"speed       {found.pairs_per_second:,.0f} pairs/s at present, over all "
        "processes",
        f"ETA         {_hours(found.eta)}",
        f"cost        {found.chip_hours:,.3f} chip-hours so far, "
        f"{found.chip_hours_total:,.3f} for the whole job",
    ]
    for name, values in (("missing", found.missing), ("stray", found.stray)):
        if values:
            more = f" and {len(values) - 5:,} more" if len(values) > 5 else ""
            lines.append(f"{name:<12}{', '.join(values[:5])}{more}")
    if len(found.codes) > 1:
        lines.append(
            f"code        chunks were made by {len(found.codes)} versions of the code: "
            f"{', '.join(found.codes)}"
        )
    return lines


def _hours(seconds: float) -> str:
    if math.isnan(seconds):
        return "unknown until a chunk is done"
    if not seconds:
        return "done"
    minutes = int(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"


def present_rate(times: Mapping[str, Sequence[Time]], *, now: float) -> float:
    """Pairs a second of all hosts together, over the last quarter of an hour.

    Hosts' clocks differ, and may be set while they work. So a host's speed is its pairs
    over the time that its own chunks cover, and a chunk that ends in the future does
    not tell when the last quarter of an hour was.

    Args:
      times: of each host's chunks, in any order.
      now: seconds since 1970, by the clock here.
    """
    ends = [finished for found in times.values() for finished, _, _ in found]
    if not ends:
        return 0.0
    past = [end for end in ends if end <= now + _SKEW]
    begin = max(past or ends) - _RECENT
    return sum(_rate(found, begin) for found in times.values())


def _rate(times: Sequence[Time], begin: float) -> float:
    """Pairs a second of one host since `begin`.

    A chunk counts with the part of its pairs that was scored in that time.
    """
    pairs = covered = 0.0
    until = -math.inf
    for finished, took, count in sorted(times, key=lambda one: one[0] - one[1]):
        if finished <= begin:
            continue
        start = max(begin, finished - took)
        pairs += count * min(1.0, (finished - start) / max(took, 1e-9))
        # Between two chunks a process reads and writes: that is work too.
        since = start if start - until > _PAUSE else until
        covered += max(0.0, finished - since)
        until = max(until, finished)
    return pairs / max(covered, 1e-9) if pairs else 0.0
