"""How far a scoring job is, how fast it runs, and what it costs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ranker.scoring.job import Job

_RECENT = 900.0  # seconds that the present speed is taken over


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
    times: list[tuple[float, float, int]] = []  # finished, seconds, pairs
    for number, one in zip(done, job.receipts(done), strict=True):
        pairs_done += job.chunks[number].pairs
        quarantined += len(one["quarantined"])
        spent += one["seconds"] * one["chips"] / 3600
        codes[one["code"]] = None
        times.append((one["finished"], one["seconds"], one["pairs"]))
    rate = _present_rate(times)
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
    facts = job.manifest.facts
    teacher = facts["teacher_facts"]
    lines = [
        f"teacher     {facts['teacher']} ({job.manifest.inputs[facts['teacher']]}), "
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


def _present_rate(times: Sequence[tuple[float, float, int]]) -> float:
    """Pairs a second of all processes together, over the last quarter of an hour.

    A chunk counts with the part of its pairs that was scored in that time.
    """
    if not times:
        return 0.0
    end = max(finished for finished, _, _ in times)
    begin = max(end - _RECENT, min(finished - took for finished, took, _ in times))
    pairs = sum(
        pairs * min(1.0, max(0.0, finished - begin) / max(took, 1e-9))
        for finished, took, pairs in times
    )
    return pairs / max(end - begin, 1e-9)
