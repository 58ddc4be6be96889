"""The chunks of a scoring job: written once, each with a receipt, and proved.

    DIR/job.json                           what is scored, by whom, and every chunk
    DIR/chunks/00012-of-00098.parquet      pair, query_id, document_id, score
    DIR/receipts/00012-of-00098.json       digest of the chunk's file, and what it cost

A chunk is there when its receipt is; the receipt is written after the file, and both
appear whole or not at all. No process waits for another: each looks at what is missing
and writes its own chunks. DIR is a local folder or gs://.
"""

import hashlib
import io
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_module import (
    ArrayRecordReader,
    ArrayRecordWriter,
)

from ranker import config, storage
from ranker.errors import DataError, StageError
from ranker.manifests import Manifest, ScoreFacts, changes, check_types
from ranker.scoring.pairs import Bad, Chunk, ChunkPairs, Input
from ranker.storage import open_path

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
_AT_ONCE = 16  # receipts read side by side


@dataclass(frozen=True)
class Job:
    """A scoring job's folder."""

    folder: Any  # epath.Path
    manifest: Manifest  # what is scored, by whom, with which code
    format: config.ScoreFormat
    chunks: tuple[Chunk, ...]

    @property
    def pairs(self) -> int:
        """Pairs of the whole input."""
        return sum(chunk.pairs for chunk in self.chunks)

    def name(self, number: int) -> str:
        """Name of a chunk."""
        return f"{number:05d}-of-{len(self.chunks):05d}"

    def path(self, number: int) -> Any:
        """File of a chunk."""
        return self.folder / "chunks" / f"{self.name(number)}.{self.format}"

    def receipt_path(self, number: int) -> Any:
        """File of a chunk's receipt."""
        return self.folder / "receipts" / f"{self.name(number)}.json"

    def missing(self) -> list[int]:
        """Numbers of the chunks that are not there yet."""
        files = _listing(self.folder / "chunks")
        receipts = _listing(self.folder / "receipts")
        return [
            number
            for number in range(len(self.chunks))
            if self.path(number).name not in files
            or self.receipt_path(number).name not in receipts
        ]

    def stray(self) -> list[str]:
        """Files in the folder that are none of the job's."""
        every = range(len(self.chunks))
        ours = {
            "chunks": {self.path(number).name for number in every},
            "receipts": {self.receipt_path(number).name for number in every},
        }
        return [
            f"{part}/{name}"
            for part, names in ours.items()
            for name in sorted(_listing(self.folder / part) - names)
        ]

    def check(self, manifest: Manifest) -> None:
        """Raises `StageError` when the job is another one than `manifest` tells of."""
        if self.manifest.key != manifest.key:
            raise StageError(
                f"{self.folder} holds another scoring job: "
                f"{', '.join(changes(self.manifest, manifest))}; choose another "
                "folder, or delete this one"
            )

    def receipt(self, number: int) -> dict[str, Any]:
        """What was noted when a chunk was written.

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
                    f"{path} is not a chunk's receipt: field {name!r}: found "
                    f"{str(value)[:80]!r}; delete it and run the scoring "
                    "command again"
                )
        return found

    def receipts(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Receipts of several chunks, in order."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for begin in range(0, len(numbers), 64 * _AT_ONCE):
                yield from pool.map(
                    self.receipt, numbers[begin : begin + 64 * _AT_ONCE]
                )


def _listing(folder: Any) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def open_job(
    folder: Any,
    manifest: Manifest,
    source: Input,
    *,
    size: int,
    format: config.ScoreFormat,
) -> Job:
    """The job in `folder`, which is begun where there is none.

    Processes may do this at the same time: they cut the same input the same way.

    Args:
      folder: local or remote.
      manifest: of the job; its key must be that of the job found.
      source: input that is cut.
      size: pairs a chunk.
      format: of the chunks.

    Raises:
      StageError: when the folder holds another job, or cannot be written.
      DataError: when the input cannot be read, or holds no pair.
    """
    folder = open_path(folder)
    if (folder / FILE).exists():
        job = load_job(folder)
        job.check(manifest)
        return job
    chunks = tuple(source.chunks(size))
    if not chunks:
        raise DataError(f"the input of {folder} holds no pair to score")
    job = Job(folder, manifest, format, chunks)
    try:
        for part in ("chunks", "receipts"):
            (folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StageError(f"{folder} cannot be written: {error}") from error
    _save_json(
        folder / FILE,
        {
            "manifest": asdict(manifest),
            "format": format,
            "chunks": [list(astuple(chunk)) for chunk in chunks],
        },
    )
    return job


def is_there(folder: Any) -> bool:
    """Whether `folder` holds a job of which no chunk is missing."""
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
        chunks = tuple(Chunk(*fields) for fields in found["chunks"])
        manifest = Manifest(**found["manifest"])
        for record in (manifest, *chunks):
            check_types(record)
        facts = ScoreFacts.of(manifest.facts)
        check_types(facts)
        if facts.teacher not in manifest.inputs or facts.teacher_facts is None:
            raise ValueError("it does not say who the teacher is")
        if found["format"] not in get_args(config.ScoreFormat):
            raise ValueError(f"the format is {str(found['format'])[:80]!r}")
        follows = all(a.first + a.pairs == b.first for a, b in pairwise(chunks))
        if not chunks or chunks[0].first or not follows:
            raise ValueError("its chunks do not follow each other")
    except (KeyError, TypeError, ValueError, StageError) as error:
        raise DataError(
            f"{folder / FILE} is not a scoring job's: {str(error)[:200]}; name the "
            "folder that ranker.score writes to"
        ) from error
    return Job(folder, manifest, found["format"], chunks)


def _write(path: Any, data: bytes) -> None:
    try:
        with storage.writing(path) as file:
            file.write(data)
    except OSError as error:
        raise _refused(path, error) from error


def _save_json(path: Any, value: dict[str, Any]) -> None:
    try:
        storage.write_sealed(path, value, indent=None)
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Any, error: OSError) -> StageError:
    return StageError(
        f"{path} cannot be written: {error.strerror or error}; make room or give the "
        "right to write there, and run the same command again: what is finished is kept"
    )


def _load_json(path: Any) -> dict[str, Any]:
    """What `_save_json` has written, checked against its digest."""
    try:
        return storage.read_sealed(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is damaged: {error}; delete it and run the scoring command again"
        ) from error


def save_chunk(
    job: Job, number: int, content: ChunkPairs, scores: np.ndarray, **facts: Any
) -> None:
    """Writes a chunk and its receipt.

    Args:
      job: that it is of.
      number: of the chunk.
      content: the pairs.
      scores: float32 [n], finite, of those that could be scored.
      facts: what the chunk has cost: seconds, chips, tokens, device.

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
    data = encode_table(table, job.format)
    _write(job.path(number), data)
    _save_json(
        job.receipt_path(number),
        {
            "chunk": number,
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


def encode_table(table: pa.Table, format: config.ScoreFormat) -> bytes:
    """The bytes of a chunk's file; equal tables make equal bytes."""
    if format == "parquet":
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        return buffer.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "chunk"
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


def read_chunk(job: Job, number: int) -> tuple[pa.Table, dict[str, Any]]:
    """A chunk's table and receipt, proved: digest, pairs, finite scores.

    Raises:
      DataError: naming the chunk and what is wrong with it.
    """
    path, chunk = job.path(number), job.chunks[number]
    again = f"delete {path} and run the scoring command again: only it is scored anew"
    try:
        receipt = job.receipt(number)
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"chunk {job.name(number)} is missing from {job.folder}; run the scoring "
            "command again: it resumes with what is missing"
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
        raise DataError(
            f"{path}: is not a chunk of scores ({error}); {again}"
        ) from error
    counts = len(whole) == chunk.pairs  # first: a job may claim any number of pairs
    wanted = np.arange(chunk.first, chunk.first + len(whole))
    sound = counts and np.array_equal(np.sort(whole), wanted)
    if not sound or (np.diff(numbers) <= 0).any():
        raise DataError(
            f"{path}: expected each of the pairs {chunk.first} to "
            f"{chunk.first + chunk.pairs - 1} once, found {len(numbers)} scores and "
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
