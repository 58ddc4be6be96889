"""The shards of a scoring job: written once, each with a receipt, and proved.

    DIR/job.json                           what is scored, by whom, and every shard
    DIR/shards/00012-of-00098.parquet      pair, query_id, document_id, score
    DIR/receipts/00012-of-00098.json       digest of the shard's file, and what it cost

A shard is there when its receipt is; the receipt is written after the file, and both
appear whole or not at all. No process waits for another: each looks at what is missing
and writes its own shards. DIR is a local folder or gs://.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass, field
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_module import (
    ArrayRecordReader,
    ArrayRecordWriter,
)

from ranker import config
from ranker.data.pipeline import Source
from ranker.data.records import RankedList
from ranker.errors import DataError, StageError
from ranker.manifest import Manifest, changes, check_types
from ranker.scoring.pairs import Bad, Content, Input, Shard, open_path
from ranker.storage import digest

FILE = "job.json"
_SCHEMA = pa.schema(
    [
        ("pair", pa.int64()),  # number in the input
        ("query_id", pa.string()),
        ("document_id", pa.string()),
        ("document", pa.int64()),  # row of the prepared corpus, of prepared splits
        ("score", pa.float32()),  # raw, higher is better
    ]
)
# Fields of a receipt that are read again.
_RECEIPT: dict[str, type | tuple[type, ...]] = {
    "sha256": str,
    "bytes": int,
    "pairs": int,
    "quarantined": list,
    "finished": (int, float),
    "seconds": (int, float),
    "chips": int,
    "code": str,
}
_HASHES = 4 << 20  # pairs whose ids are compared in memory at a time
_RECENT = 900.0  # seconds that the present speed is taken over
_AT_ONCE = 16  # receipts read side by side


# --- files that appear whole ---


def _is_local(path: Any) -> bool:
    return "://" not in str(path)


def _write(path: Any, data: bytes) -> None:
    """Writes a file that is never seen half-written.

    Raises:
      StageError: where it cannot be written, as on a full disk.
    """
    try:
        if not _is_local(path):
            path.write_bytes(data)  # an object appears when its upload is complete
            return
        aside = path.parent / f".{path.name}.{os.uname().nodename}.{os.getpid()}"
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise StageError(
            f"{path} cannot be written: {error.strerror or error}; make room or give "
            "the right to write there, and run the same command again: what is "
            "finished is kept"
        ) from error


def _save_json(path: Any, value: dict[str, Any]) -> None:
    text = json.dumps({**value, "digest": digest(value)}, ensure_ascii=False)
    _write(path, text.encode())


def _load_json(path: Any) -> dict[str, Any]:
    """What `_save_json` has written, checked against its digest."""
    try:
        value = json.loads(path.read_bytes())
        if value.pop("digest") != digest(value):
            raise ValueError("its digest differs from what it holds")
        return value
    except FileNotFoundError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise DataError(
            f"{path} is damaged: {error}; delete it and run the scoring command again"
        ) from error


# --- the job ---


@dataclass(frozen=True)
class Job:
    """A scoring job's folder."""

    folder: Any  # epath.Path
    account: dict[str, Any]  # what is scored, by whom, with which code
    format: config.ScoreFormat
    shards: tuple[Shard, ...]

    @property
    def pairs(self) -> int:
        """Pairs of the whole input."""
        return sum(shard.pairs for shard in self.shards)

    def name(self, number: int) -> str:
        """Name of a shard."""
        return f"{number:05d}-of-{len(self.shards):05d}"

    def path(self, number: int) -> Any:
        """File of a shard."""
        return self.folder / "shards" / f"{self.name(number)}.{self.format}"

    def receipt_path(self, number: int) -> Any:
        """File of a shard's receipt."""
        return self.folder / "receipts" / f"{self.name(number)}.json"

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there yet."""
        files = _listing(self.folder / "shards")
        receipts = _listing(self.folder / "receipts")
        return [
            number
            for number in range(len(self.shards))
            if self.path(number).name not in files
            or self.receipt_path(number).name not in receipts
        ]

    def stray(self) -> list[str]:
        """Files in the folder that are none of the job's."""
        every = range(len(self.shards))
        ours = {
            "shards": {self.path(number).name for number in every},
            "receipts": {self.receipt_path(number).name for number in every},
        }
        return [
            f"{part}/{name}"
            for part, names in ours.items()
            for name in sorted(_listing(self.folder / part) - names)
        ]

    def check(self, account: Manifest) -> None:
        """Raises `StageError` when the job is another one than `account` tells of."""
        found = Manifest(**self.account)
        if found.key != account.key:
            raise StageError(
                f"{self.folder} holds another scoring job: "
                f"{', '.join(changes(found, account))}; choose another folder, or "
                "delete this one"
            )

    def receipt(self, number: int) -> dict[str, Any]:
        """What was noted when a shard was written.

        Raises:
          DataError: when the file is damaged, or another's.
        """
        path = self.receipt_path(number)
        found = _load_json(path)
        for name, kind in _RECEIPT.items():
            value = found.get(name)
            huge = isinstance(value, int | float) and not abs(value) < 2**60
            if not isinstance(value, kind) or huge:
                raise DataError(
                    f"{path} is no shard's receipt: field {name!r}: found "
                    f"{str(value)[:80]!r}; delete it and run the scoring "
                    "command again"
                )
        return found

    def receipts(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Receipts of several shards, in order."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for begin in range(0, len(numbers), 64 * _AT_ONCE):
                yield from pool.map(
                    self.receipt, numbers[begin : begin + 64 * _AT_ONCE]
                )


def _listing(folder: Any) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def open_job(
    folder: Any,
    account: Manifest,
    source: Input,
    *,
    size: int,
    format: config.ScoreFormat,
) -> Job:
    """The job in `folder`, which is begun where there is none.

    Processes may do this at the same time: they cut the same input the same way.

    Args:
      folder: local or remote.
      account: of the job; its key must be that of the job found.
      source: input that is cut.
      size: pairs a shard.
      format: of the shards.

    Raises:
      StageError: when the folder holds another job, or cannot be written.
      DataError: when the input cannot be read, or holds no pair.
    """
    folder = open_path(folder)
    if (folder / FILE).exists():
        job = load_job(folder)
        job.check(account)
        return job
    shards = tuple(source.shards(size))
    if not shards:
        raise DataError(f"the input of {folder} holds no pair to score")
    job = Job(folder, asdict(account), format, shards)
    try:
        for part in ("shards", "receipts"):
            (folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StageError(f"{folder} cannot be written: {error}") from error
    _save_json(
        folder / FILE,
        {
            "account": job.account,
            "format": format,
            "shards": [list(astuple(shard)) for shard in shards],
        },
    )
    return job


def is_there(folder: Any) -> bool:
    """Whether `folder` holds a job of which no shard is missing."""
    folder = open_path(folder)
    return (folder / FILE).exists() and not load_job(folder).missing()


def load_job(folder: Any) -> Job:
    """The job in `folder`.

    Raises:
      StageError: when there is none.
      DataError: when its job.json is damaged.
    """
    folder = open_path(folder)
    try:
        found = _load_json(folder / FILE)
    except FileNotFoundError:
        raise StageError(
            f"{folder} holds no scoring job: it has no {FILE}; name the folder that "
            "ranker.score writes to, such as WORKDIR/scores"
        ) from None
    try:
        shards = tuple(Shard(*fields) for fields in found["shards"])
        account = Manifest(**found["account"])
        for record in (account, *shards):
            check_types(record)
        teacher = account.facts.get("teacher")
        if teacher not in account.inputs or not isinstance(
            account.facts.get("teacher_facts"), dict
        ):
            raise ValueError("it does not say who the teacher is")
        if found["format"] not in get_args(config.ScoreFormat):
            raise ValueError(f"the format is {str(found['format'])[:80]!r}")
        follows = all(a.first + a.pairs == b.first for a, b in pairwise(shards))
        if not shards or shards[0].first or not follows:
            raise ValueError("its shards do not follow each other")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / FILE} is not a scoring job's: {str(error)[:200]}; name the "
            "folder that ranker.score writes to"
        ) from error
    return Job(folder, found["account"], found["format"], shards)


def save_shard(
    job: Job, number: int, content: Content, scores: np.ndarray, **facts: Any
) -> None:
    """Writes a shard and its receipt.

    Args:
      job: that it is of.
      number: of the shard.
      content: the pairs.
      scores: float32 [n], finite, of those that could be scored.
      facts: what the shard has cost: seconds, chips, tokens, device.

    Raises:
      StageError: when it cannot be written.
    """
    if len(scores) != len(content.pairs) or not np.isfinite(scores).all():
        raise AssertionError(f"{len(scores)} scores for {len(content.pairs)} pairs")
    columns: dict[str, Any] = {
        "pair": content.pairs,
        "query_id": content.query_ids,
        "document_id": content.document_ids,
        "document": content.rows,
        "score": np.asarray(scores, np.float32),
    }
    kept = [one for one in _SCHEMA if columns[one.name] is not None]
    table = pa.table([columns[one.name] for one in kept], schema=pa.schema(kept))
    data = _encode(table, job.format)
    _write(job.path(number), data)
    _save_json(
        job.receipt_path(number),
        {
            "shard": number,
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "pairs": len(scores),
            "quarantined": [asdict(one) for one in content.bad],
            "host": os.uname().nodename,
            "finished": round(time.time(), 3),
            **facts,
        },
    )


def save_quarantine(job: Job, bad: Sequence[Bad]) -> Any:
    """Lists the pairs of a job that were set aside; returns the file's path."""
    path = job.folder / "quarantined.jsonl"
    lines = [json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in bad]
    _write(path, "".join(lines).encode())
    return path


def _encode(table: pa.Table, format: config.ScoreFormat) -> bytes:
    """The file's bytes; equal tables make equal bytes."""
    if format == "parquet":
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        return buffer.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "shard"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for row in table.to_pylist():
            writer.write(json.dumps(row, ensure_ascii=False).encode())
        writer.close()
        return path.read_bytes()


def _decode(data: bytes, format: config.ScoreFormat) -> pa.Table:
    if format == "parquet":
        return pq.read_table(io.BytesIO(data), use_threads=False)
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        reader = ArrayRecordReader(file.name)
        rows = [json.loads(record) for record in reader.read_all()]
        reader.close()
    kept = [one for one in _SCHEMA if not rows or one.name in rows[0]]
    return pa.Table.from_pylist(rows, schema=pa.schema(kept))


def read_shard(job: Job, number: int) -> tuple[pa.Table, dict[str, Any]]:
    """A shard's table and receipt, proved: digest, pairs, finite scores.

    Raises:
      DataError: naming the shard and what is wrong with it.
    """
    path, shard = job.path(number), job.shards[number]
    again = f"delete {path} and run the scoring command again: only it is scored anew"
    try:
        receipt = job.receipt(number)
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"shard {job.name(number)} is missing from {job.folder}; run the scoring "
            "command again: it goes on with what is missing"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != receipt["sha256"]:
        raise DataError(
            f"{path}: the digest differs from its receipt's: the file is damaged "
            f"({len(data)} bytes, {receipt['bytes']} were written); {again}"
        )
    try:
        table = _decode(data, job.format)
        numbers = table["pair"].to_numpy()
        scores = table["score"].to_numpy()
        bad = [Bad(**one) for one in receipt["quarantined"]]
        whole = np.concatenate([numbers, np.array([one.pair for one in bad], np.int64)])
    except (KeyError, ValueError, TypeError, RuntimeError, pa.ArrowException) as error:
        raise DataError(f"{path}: is no shard of scores ({error}); {again}") from error
    counts = len(whole) == shard.pairs  # first: a job may claim any number of pairs
    wanted = np.arange(shard.first, shard.first + len(whole))
    sound = counts and np.array_equal(np.sort(whole), wanted)
    if not sound or (np.diff(numbers) <= 0).any():
        raise DataError(
            f"{path}: expected each of the pairs {shard.first} to "
            f"{shard.first + shard.pairs - 1} once, found {len(numbers)} scores and "
            f"{len(bad)} pairs set aside; {again}"
        )
    if not np.isfinite(scores).all():
        at = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise DataError(
            f"{path}: pair {numbers[at]} has the score {scores[at]}; {again}"
        )
    for name in ("query_id", "document_id"):
        if table[name].null_count:
            raise DataError(f"{path}: field {name!r} is missing in a row; {again}")
    return table, receipt


# --- proof ---


@dataclass
class Proof:
    """What `verify` has seen: figures of the scores, and the pairs set aside."""

    pairs: int = 0
    mean: float = 0.0
    std: float = 0.0
    min: float = math.inf
    max: float = -math.inf
    quarantined: list[Bad] = field(default_factory=list)

    def add(self, scores: np.ndarray) -> None:
        """Takes in the scores of one more shard."""
        if not len(scores):
            return
        values = scores.astype(np.float64)
        # Means and squares are joined as by Chan, Golub and LeVeque (1979).
        total = self.pairs + len(values)
        shift = values.mean() - self.mean
        squares = (
            self.std**2 * self.pairs
            + values.var() * len(values)
            + shift**2 * self.pairs * len(values) / total
        )
        self.mean += float(shift * len(values) / total)
        self.std = math.sqrt(squares / total)
        self.pairs = total
        self.min = min(self.min, float(values.min()))
        self.max = max(self.max, float(values.max()))


def verify(
    job: Job,
    *,
    source: Input | None = None,
    progress: Callable[[int], None] | None = None,
) -> Proof:
    """Proves that every pair of a job has exactly one finite score.

    Every shard is there, its file has the digest of its receipt, and it holds each of
    its pairs once, or lists it as set aside; no two pairs have the same ids.

    Args:
      job: to prove.
      source: its input; then every pair's ids are compared with it too.
      progress: called with the number of shards that are proved.

    Raises:
      DataError: naming the first shard, or the pair, that is not so.
    """
    if missing := job.missing():
        names = ", ".join(job.name(number) for number in missing[:5])
        raise DataError(
            f"{job.folder}: {len(missing)} of {len(job.shards)} shards are missing: "
            f"{names}{', ...' if len(missing) > 5 else ''}; run the scoring command "
            "again: it goes on with these"
        )
    proof = Proof()
    with contextlib.closing(_Ids(job.pairs)) as ids:
        for number in range(len(job.shards)):
            table, receipt = read_shard(job, number)
            bad = [Bad(**one) for one in receipt["quarantined"]]
            if source is not None:
                _compare(job, number, source, table, bad)
            ids.add(*_ids_of(table))
            proof.add(table["score"].to_numpy())
            proof.quarantined += bad
            if progress:
                progress(number + 1)
        twice = ids.repeated()
    places = _places(job, twice) if twice else []
    if places:
        (*pair, first), (_, _, second) = places
        raise DataError(
            f"{job.folder}: the pair {tuple(pair)} is scored twice, as number {first} "
            f"and {second}: the input lists it twice; take it out, and score again"
        )
    return proof


def _ids_of(table: pa.Table) -> tuple[list[Any], list[Any]]:
    return table["query_id"].to_pylist(), table["document_id"].to_pylist()


def _compare(
    job: Job, number: int, source: Input, table: pa.Table, bad: list[Bad]
) -> None:
    shard = job.shards[number]
    aside = {one.pair for one in bad}
    wanted = [
        pair
        for place, pair in enumerate(zip(*source.ids(shard), strict=True), shard.first)
        if place not in aside
    ]
    found = list(zip(*_ids_of(table), strict=True))
    if wanted != found:
        at = next(
            (i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b),
            min(len(wanted), len(found)),
        )
        raise DataError(
            f"shard {job.name(number)}: row {at}: the input has the pair "
            f"{(*wanted, None)[at]}, and {(*found, None)[at]} was scored; the input "
            "has changed since"
        )


class _Ids:
    """Finds ids that come twice among any number of pairs, in bounded memory."""

    def __init__(self, total: int):
        count = max(1, -(-total // _HASHES))
        self.parts = [tempfile.TemporaryFile() for _ in range(count)]

    def add(self, queries: list[str], documents: list[str]) -> None:
        """Takes in the ids of some pairs."""
        pairs = zip(queries, documents, strict=True)
        hashes = np.fromiter(map(hash, pairs), np.int64, len(queries))
        part = hashes.view(np.uint64) % np.uint64(len(self.parts))
        for number, file in enumerate(self.parts):
            file.write(hashes[part == number].tobytes())

    def repeated(self) -> set[int]:
        """Hashes of ids that came more than once."""
        result: set[int] = set()
        for file in self.parts:
            file.seek(0)
            hashes, counts = np.unique(
                np.frombuffer(file.read(), np.int64), return_counts=True
            )
            result |= set(hashes[counts > 1].tolist())
        return result

    def close(self) -> None:
        """Gives the files back."""
        for file in self.parts:
            file.close()


def _places(job: Job, hashes: set[int]) -> list[tuple[str, str, int]]:
    """Ids and number of two pairs with the same ids; hashes alone may be equal."""
    seen: dict[tuple[str, str], int] = {}
    for number in range(len(job.shards)):
        table, _ = read_shard(job, number)
        pairs = zip(*_ids_of(table), strict=True)
        for pair, place in zip(pairs, table["pair"].to_pylist(), strict=True):
            if hash(pair) in hashes:
                if pair in seen:
                    return [(*pair, seen[pair]), (*pair, place)]
                seen[pair] = place
    return []


# --- status ---


@dataclass(frozen=True)
class Status:
    """How far a job is, and what it costs."""

    shards: int
    done: int
    pairs: int
    pairs_done: int
    quarantined: int
    pairs_per_second: float  # at present, over all processes; 0: nothing to go by
    eta: float  # seconds; nan: nothing to go by
    chip_hours: float  # spent on the shards that are done
    chip_hours_total: float  # of the whole job, at the same cost a pair; nan: unknown
    codes: tuple[str, ...]  # digests of the code that has written shards
    missing: tuple[str, ...]
    stray: tuple[str, ...]


def status(job: Job) -> Status:
    """Reads every receipt.

    Raises:
      DataError: at a damaged receipt.
    """
    missing = job.missing()
    left = set(missing)
    done = [number for number in range(len(job.shards)) if number not in left]
    pairs_done = quarantined = 0
    spent = 0.0
    codes: dict[str, None] = {}
    times: list[tuple[float, float, int]] = []  # finished, seconds, pairs
    for number, one in zip(done, job.receipts(done), strict=True):
        pairs_done += job.shards[number].pairs
        quarantined += len(one["quarantined"])
        spent += one["seconds"] * one["chips"] / 3600
        codes[one["code"]] = None
        times.append((one["finished"], one["seconds"], one["pairs"]))
    rate = _present_rate(times)
    rest = job.pairs - pairs_done
    return Status(
        shards=len(job.shards),
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


def describe(job: Job, found: Status) -> list[str]:
    """The status in lines for a reader."""
    facts = job.account["facts"]
    teacher = facts["teacher_facts"]
    lines = [
        f"teacher     {facts['teacher']} ({job.account['inputs'][facts['teacher']]}), "
        f"tokenizer {str(teacher.get('tokenizer'))[:16]}, template "
        f"{str(teacher.get('template'))[:16]}",
        f"shards      {found.done:,} of {found.shards:,} done, "
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
            f"code        shards were made by {len(found.codes)} versions of the code: "
            f"{', '.join(found.codes)}"
        )
    return lines


def _hours(seconds: float) -> str:
    if math.isnan(seconds):
        return "unknown until a shard is done"
    if not seconds:
        return "done"
    minutes = int(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"


def _present_rate(times: Sequence[tuple[float, float, int]]) -> float:
    """Pairs a second of all processes together, over the last quarter of an hour.

    A shard counts with the part of its pairs that was scored in that time.
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


# --- what distillation reads ---


class Scores(Sequence[np.ndarray]):
    """Scores of lists, by list; they lie in a file, not in memory."""

    def __init__(self, values: np.ndarray, ends: np.ndarray, line=(1.0, 0.0)):
        self.values, self.ends, self.line = values, ends, line

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"list {index} of {len(self)}")
        begin = self.ends[index - 1] if index else 0
        scale, shift = self.line
        return (self.values[begin : self.ends[index]] * scale + shift).astype(
            np.float32
        )

    def scaled(self, scale: float, shift: float) -> "Scores":
        """The same scores, each times `scale` plus `shift`."""
        return Scores(self.values, self.ends, (scale, shift))


def load_scores(folder: Any, lists: Mapping[str, Source[RankedList]]) -> Scores:
    """Scores of each list's documents, in the order of the splits and their lists.

    The shards are read one by one, and proved as they are read.

    Args:
      folder: of the score stage's shards, local or remote.
      lists: records of each split, in the order they were scored.

    Raises:
      DataError: when a shard is missing or damaged, or holds other queries or documents
        than `lists`, or no score for one of them.
    """
    job = load_job(folder)
    where = job.folder if _is_local(job.folder) else None
    with tempfile.TemporaryFile(dir=where) as file:  # gone when nobody reads it
        ends = _collect(job, lists, file)
        count = int(ends[-1]) if len(ends) else 0
        values = np.memmap(file, np.float32, "r", shape=(count,)) if count else None
    return Scores(np.zeros(0, np.float32) if values is None else values, ends)


def _collect(job: Job, lists: Mapping[str, Source[RankedList]], file: Any):
    """Writes the scores of all lists to a file; int64 [lists], where each ends."""
    shards = iter(range(len(job.shards)))
    ends: list[int] = []
    at = 0
    for name, source in lists.items():
        rest = len(source)
        begin = 0
        while rest:
            number = next(shards, None)
            if number is None or job.shards[number].source != name:
                raise DataError(
                    f"{job.folder}: the scores end before the split {name!r} does; "
                    "they belong to other data: run ranker.score again"
                )
            shard = job.shards[number]
            table, receipt = read_shard(job, number)
            if receipt["quarantined"]:
                raise DataError(
                    f"{job.path(number)}: {len(receipt['quarantined'])} pairs have no "
                    "score: they were set aside (--config.quarantine); distillation "
                    "needs the score of every candidate of a query"
                )
            records = [source[begin + i] for i in range(min(shard.count, rest))]
            at += _same(job, number, table, records, ends, at)
            file.write(table["score"].to_numpy().astype(np.float32).tobytes())
            begin, rest = begin + shard.count, rest - shard.count
    if next(shards, None) is not None:
        raise DataError(
            f"{job.folder}: scores are left over after the last list; they belong to "
            "other data: run ranker.score again"
        )
    file.flush()
    return np.array(ends, np.int64)


def _same(
    job: Job,
    number: int,
    table: pa.Table,
    records: Sequence[RankedList],
    ends: list[int],
    at: int,
) -> int:
    """Compares a shard with its lists, notes where each ends, and counts its pairs."""
    rows = table["document"].to_numpy()
    queries = table["query_id"].to_pylist()
    here = 0
    for record in records:
        end = here + len(record.documents)
        same = end <= len(rows) and np.array_equal(rows[here:end], record.documents)
        if not same or (end > here and queries[here] != record.query_id):
            raise DataError(
                f"{job.path(number)}: row {here}: expected the "
                f"{len(record.documents)} candidates of query {record.query_id!r}, "
                "found others; the scores belong to other data: run ranker.score again"
            )
        here = end
        ends.append(at + here)
    if here != len(rows):
        raise DataError(
            f"{job.path(number)}: {len(rows) - here} scores are left over after its "
            "last list; the scores belong to other data: run ranker.score again"
        )
    return here


class Joined:
    """Several sources behind each other, as one."""

    def __init__(self, sources: Sequence[Source[RankedList]]):
        self.sources = sources
        self._ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int):
        which = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[which - 1]) if which else 0
        return self.sources[which][index - before]
