"""Files of pairs to score, local or remote, of any size.

    a BEIR folder        corpus.jsonl, queries.jsonl, and TREC runs that list the pairs
    .parquet             rows of query_id, document_id, query, title, text
    .array_record        the same fields as a JSON object a record
    .jsonl[.gz]          the same fields as a JSON object a line

Memory is that of a chunk: texts that a run only names are looked up in an SQLite file,
made once a machine.
"""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_module import ArrayRecordReader

from ranker import config
from ranker.data import formats, lines
from ranker.data.records import Document, RankedList, check_id, check_text
from ranker.errors import DataError, FieldError
from ranker.scoring.pairs import (
    WORLD,
    Bad,
    Chunk,
    ChunkPairs,
    Input,
    WorldPairs,
    make_list,
)
from ranker.storage import digest, open_path, replacing

FIELDS = ("query_id", "document_id", "query", "title", "text")
_AT_ONCE = 4096  # records read at a time
_SAMPLE = 1 << 20  # bytes of a file's ends that go into its fingerprint
_BUFFER = 8 << 20  # bytes of a Parquet column that are fetched at a time
_LOOKED_UP = 500  # ids a question to SQLite


def open_input(
    path: str, *, pairs: str, world: config.World, cache: str, lenient: bool
) -> Input:
    """The input that `path` names.

    Args:
      path: "world", a folder in the BEIR layout, or a file, folder or glob pattern of
        Parquet, ArrayRecord or JSON lines; local, or gs://.
      pairs: glob pattern, below a BEIR folder, of the files that list the pairs.
      world: settings of the synthetic collection.
      cache: local folder for what is looked up or fetched; empty: the system's.
      lenient: leave malformed documents and queries out; their pairs cannot be scored.

    Raises:
      DataError: when nothing of the kind is there.
    """
    if path == WORLD:
        return WorldPairs(world)
    where = open_path(path)
    local = pathlib.Path(cache or os.path.join(tempfile.gettempdir(), "ranker-cache"))
    if where.is_dir() and _find(where, "corpus.jsonl"):
        return BeirPairs(where, pairs, local, lenient)
    files = _files(where)
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1:
        raise DataError(
            f"{where}: holds files of several kinds ({', '.join(sorted(kinds))}); name "
            f"one kind, such as --config.input='{where}/*{sorted(kinds)[0]}'"
        )
    kind = kinds.pop()
    if kind == ".parquet":
        return ParquetPairs(files)
    if kind == ".array_record":
        return ArrayRecordPairs(files, local)
    return JsonPairs(files)


_SUFFIXES = {
    ".parquet": ".parquet",
    ".array_record": ".array_record",
    ".arrayrecord": ".array_record",
    ".jsonl": ".jsonl",
    ".jsonl.gz": ".jsonl",
}


def _kind(path: Any) -> str:
    return next((v for k, v in _SUFFIXES.items() if path.name.endswith(k)), "")


def _files(where: Any) -> list[Any]:
    """The pair files that a path, folder or pattern names, by name."""
    if any(c in where.name for c in "*?["):
        found = [file for file in where.parent.glob(where.name) if _kind(file)]
    elif where.is_dir():
        found = [file for file in where.iterdir() if _kind(file)]
    elif where.exists():
        found = [where] if _kind(where) else []
    else:
        raise DataError(
            f"{where}: no such file or folder; --config.input takes {WORLD!r}, a folder"
            " in the BEIR layout, or a file, folder or pattern of .parquet, "
            ".array_record or .jsonl[.gz]"
        )
    if not found:
        raise DataError(
            f"{where}: no corpus.jsonl and no file of pairs is there; a file of pairs "
            "is .parquet, .array_record or .jsonl[.gz], with the fields "
            f"{', '.join(FIELDS)}"
        )
    return sorted(found, key=str)


def _find(folder: Any, name: str) -> Any | None:
    """`name` or `name`.gz in the folder, or None."""
    return next(
        (path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None
    )


def sampled_fingerprint(path: Any) -> list[Any]:
    """Name, size, and a digest of the first and last MiB of a file.

    A file of hundreds of gigabytes is not read twice to know it again; a change that
    keeps both ends and the size is not noticed.

    Raises:
      DataError: where it cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_SAMPLE)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _SAMPLE))
            tail = file.read(_SAMPLE)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return [path.name, size, hashlib.sha256(head + tail).hexdigest()[:16]]


# --- records that carry their texts ---


@dataclass(frozen=True, slots=True)
class _Row:
    """A pair with its texts, or why it is none."""

    query_id: str
    document_id: str
    query: str = ""
    document: Document | None = None
    reason: str = ""


def _row(fields: Any, where: str) -> _Row:
    """Checks a record of `FIELDS`."""
    if not isinstance(fields, dict):
        return _Row("", "", reason=f"{where}: found {fields!r:.80}, expected an object")
    names = [str(fields.get(name, "")) for name in FIELDS[:2]]
    try:
        query_id = check_id("query_id", fields.get("query_id"))
        name = check_id("document_id", fields.get("document_id"))
        query = check_text("query", fields.get("query")).strip()
        title = check_text("title", fields.get("title"), empty=True).strip()
        text = check_text("text", fields.get("text"), empty=True).strip()
        return _Row(query_id, name, query, Document(name, title, text))
    except FieldError as error:
        return _Row(names[0], names[1], reason=f"{where}: {error}")


def _of_rows(rows: Iterable[_Row], first: int) -> ChunkPairs:
    """Groups consecutive pairs of a query into lists; sets aside what is not a pair."""
    lists: list[RankedList] = []
    bad: list[Bad] = []
    pairs: list[int] = []
    kept: list[_Row] = []
    documents: dict[tuple[str, str, str], int] = {}
    seen: dict[tuple[str, str], int] = {}
    group: list[int] = []
    asked = ("", "")

    def close() -> None:
        if group:
            lists.append(make_list(*asked, group))
            group.clear()

    for pair, row in enumerate(rows, first):
        reason = row.reason
        earlier = seen.setdefault((row.query_id, row.document_id), pair)
        if not reason and earlier != pair:
            reason = f"the input lists it twice: it is pair {earlier} too"
        if reason or row.document is None:
            bad.append(Bad(pair, row.query_id, row.document_id, reason))
            continue
        if (row.query_id, row.query) != asked:
            close()
            asked = (row.query_id, row.query)
        one = row.document
        place = documents.setdefault((one.id, one.title, one.text), len(documents))
        group.append(place)
        pairs.append(pair)
        kept.append(row)
    close()
    return ChunkPairs(
        lists=lists,
        corpus=[Document(*texts) for texts in documents],
        pairs=np.array(pairs, np.int64),
        query_ids=[row.query_id for row in kept],
        document_ids=[row.document_id for row in kept],
        bad=bad,
    )


class _Files:
    """Inputs of several files; a chunk lies in one of them."""

    kind = ""

    def __init__(self, files: Sequence[Any]):
        self._name, self._opened = "", None
        self._stack = contextlib.ExitStack()
        self.files = {path.name: path for path in files}
        if len(self.files) < len(files):
            raise DataError(
                f"{files[0].parent}: two files of pairs have the same name; give each "
                "its own"
            )

    def settings(self) -> dict[str, Any]:
        """Fingerprints of the files."""
        return {self.kind: [sampled_fingerprint(path) for path in self.files.values()]}

    def _begin(self, path: Any, stack: contextlib.ExitStack) -> Any:
        """Opens a file; the stack closes it."""
        raise NotImplementedError

    def _open(self, name: str) -> Any:
        """A file of the input; it stays open until another one is asked for."""
        if self._name != name:
            self.close()
            with contextlib.ExitStack() as stack:
                self._opened = self._begin(self.files[name], stack)
                self._stack = stack.pop_all()
            self._name = name
        return self._opened

    def close(self) -> None:
        """See `Input`."""
        self._stack.close()
        self._name, self._opened = "", None

    def _cut_rows(self, counts: Iterable[tuple[str, int]], size: int):
        """Chunks of `size` rows of each file."""
        first = 0
        for name, total in counts:
            for begin in range(0, total, size):
                count = min(size, total - begin)
                yield Chunk(name, begin, count, first, count)
                first += count


class _Group:
    """The rows of a Parquet row group, read from first to last."""

    def __init__(self, key: tuple, batches: Iterator[Any], at: int):
        self.key, self.batches, self.at = key, batches, at
        self.batch: Any = None  # the rows from `at` on that are decoded

    def goes_on(self, key: tuple, row: int) -> bool:
        """Whether this group holds `row`, and it has not been passed."""
        return self.key == key and self.at <= row

    def take(self, low: int, high: int) -> Iterator[Any]:
        """Rows `low` to `high`, in batches."""
        while self.at < high:
            if self.batch is None or not len(self.batch):
                self.batch = next(self.batches)
            skip = min(max(low - self.at, 0), len(self.batch))
            count = min(high - self.at, len(self.batch))
            if skip < count:
                yield self.batch.slice(skip, count - skip)
            self.at += count
            self.batch = self.batch.slice(count)


class ParquetPairs(_Files):
    """Rows of Parquet files; only their footers are read to cut them."""

    kind = "parquet"

    _going: _Group | None = None

    def _begin(self, path: Any, stack: contextlib.ExitStack) -> pq.ParquetFile:
        self._going = None
        try:
            file = pq.ParquetFile(
                stack.enter_context(path.open("rb")), buffer_size=_BUFFER
            )
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path}: is not a Parquet file that can be read: {error}"
            ) from error
        names = file.schema_arrow.names
        if not {*FIELDS[:3]} <= {*names} or not {"title", "text"} & {*names}:
            raise DataError(
                f"{path}: found the columns {', '.join(names)}; expected "
                f"{', '.join(FIELDS)} (title or text may be left out)"
            )
        return file

    def chunks(self, size: int) -> Iterator[Chunk]:
        """`size` rows each."""
        yield from self._cut_rows(
            ((name, self._open(name).metadata.num_rows) for name in self.files), size
        )

    def _rows(self, chunk: Chunk, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        end = chunk.begin + chunk.count
        try:
            file = self._open(chunk.source)
            names = [one for one in columns if one in file.schema_arrow.names]
            after = 0
            for number in range(file.metadata.num_row_groups):
                first, after = after, after + file.metadata.row_group(number).num_rows
                if after > chunk.begin and first < end:
                    low, high = max(first, chunk.begin), min(after, end)
                    key = (chunk.source, number, tuple(names))
                    # A chunk that begins where the last one ended, or later, continues
                    # from there: a group of rows is not decoded once a chunk.
                    if self._going is None or not self._going.goes_on(key, low):
                        batches = file.iter_batches(
                            _AT_ONCE,
                            row_groups=[number],
                            columns=names,
                            use_threads=False,
                        )
                        self._going = _Group(key, iter(batches), first)
                    for batch in self._going.take(low, high):
                        yield from batch.to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{self.files[chunk.source]}: rows {chunk.begin} to {end} cannot be "
                f"read: {error}"
            ) from error

    def ids(self, chunk: Chunk) -> tuple[list[str], list[str]]:
        """See `Input`."""
        rows = list(self._rows(chunk, FIELDS[:2]))
        return _names(rows)

    def read(self, chunk: Chunk) -> ChunkPairs:
        """See `Input`."""
        path = self.files[chunk.source]
        rows = (
            _row(fields, f"{path}: row {number}")
            for number, fields in enumerate(self._rows(chunk, FIELDS), chunk.begin)
        )
        return _of_rows(rows, chunk.first)


def _names(rows: Iterable[Any]) -> tuple[list[str], list[str]]:
    """Both ids of each record, as far as it has any."""
    found = [
        (str(row.get("query_id", "")), str(row.get("document_id", "")))
        if isinstance(row, dict)
        else ("", "")
        for row in rows
    ]
    return [one for one, _ in found], [one for _, one in found]


def _json(line: bytes | str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line


class ArrayRecordPairs(_Files):
    """JSON objects in ArrayRecord files; a remote file is fetched once a machine."""

    kind = "array_record"

    def __init__(self, files: Sequence[Any], cache: pathlib.Path):
        super().__init__(files)
        self.cache = cache

    def _begin(self, path: Any, stack: contextlib.ExitStack) -> ArrayRecordReader:
        try:
            reader = ArrayRecordReader(str(_local(path, self.cache)))
            if not reader.ok():
                reader.close()  # raises what is wrong
        except (RuntimeError, ValueError, OSError) as error:
            raise DataError(
                f"{path}: is not an ArrayRecord file that can be read: {error}"
            ) from error
        stack.callback(reader.close)
        return reader

    def chunks(self, size: int) -> Iterator[Chunk]:
        """`size` records each."""
        yield from self._cut_rows(
            ((name, self._open(name).num_records()) for name in self.files), size
        )

    def _records(self, chunk: Chunk) -> Iterator[Any]:
        reader = self._open(chunk.source)
        end = chunk.begin + chunk.count
        try:
            for begin in range(chunk.begin, end, _AT_ONCE):
                found: Any = reader.read(begin, min(begin + _AT_ONCE, end))
                yield from map(_json, found)
        except (RuntimeError, ValueError, IndexError) as error:
            raise DataError(
                f"{self.files[chunk.source]}: records {chunk.begin} to {end} cannot be "
                f"read: {error}"
            ) from error

    def ids(self, chunk: Chunk) -> tuple[list[str], list[str]]:
        """See `Input`."""
        return _names(self._records(chunk))

    def read(self, chunk: Chunk) -> ChunkPairs:
        """See `Input`."""
        path = self.files[chunk.source]
        rows = (
            _row(fields, f"{path}: record {number}")
            for number, fields in enumerate(self._records(chunk), chunk.begin)
        )
        return _of_rows(rows, chunk.first)


def _local(path: Any, cache: pathlib.Path) -> pathlib.Path:
    """The file itself, or a copy of a remote one."""
    if "://" not in str(path):
        return pathlib.Path(path)
    target = cache / f"{digest([str(path), sampled_fingerprint(path)])}-{path.name}"
    if not target.exists():
        _make_aside(target, lambda aside: _fetch(path, aside))
    return target


def _fetch(path: Any, target: pathlib.Path) -> None:
    with path.open("rb") as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 22)


def _make_aside(target: pathlib.Path, make: Callable[[pathlib.Path], Any]) -> None:
    """Makes a file of the cache aside, so that it is never seen unfinished."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as aside:
            make(aside)
    except (OSError, sqlite3.OperationalError) as error:
        raise DataError(
            f"{target.parent}: the cache cannot be written ({error}); name a local "
            "folder with room in --config.cache"
        ) from error


# --- lines ---


class _Lines(_Files):
    """Files of one pair a line, plain or gzip; cut at bytes of the unzipped text."""

    kind = "lines"

    def _begin(self, path: Any, stack: contextlib.ExitStack) -> Any:
        return lines.unzipped(path, stack.enter_context(path.open("rb")))

    def _lines(self, name: str, begin: int = 0, line: int = 0):
        """(byte after it, number, line) of each line; no empty ones, no header."""
        path, at = self.files[name], begin
        try:
            file = self._open(name)
            file.seek(begin)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"{path}:{line + 1}: cannot be read ({error}); the file is truncated "
                "or damaged: fetch it again"
            ) from error
        for number, raw in lines.raw_lines(path, file, line):
            at += len(raw)
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if raw.strip() and not (number == 1 and self._is_header(raw)):
                yield at, number, raw

    def _is_header(self, raw: bytes) -> bool:
        del raw
        return False

    def _query_of(self, raw: bytes) -> bytes:
        """What tells the lines of a query from the next one's."""
        raise NotImplementedError

    def chunks(self, size: int) -> Iterator[Chunk]:
        """`size` lines each, and those that end its last query, up to `size` more."""
        first = 0
        for name in self.files:
            begin = line = at = number = count = 0
            query = None
            for after, found, raw in self._lines(name):
                if count >= size:
                    asked = self._query_of(raw)
                    if (query is not None and asked != query) or count >= 2 * size:
                        yield Chunk(name, begin, count, first, count, line)
                        begin, line, first, count = at, number, first + count, 0
                    query = asked
                at, number, count = after, found, count + 1
                if count == size:
                    query = self._query_of(raw)
            if count:
                yield Chunk(name, begin, count, first, count, line)
                first += count

    def _of(self, chunk: Chunk) -> Iterator[tuple[str, bytes]]:
        """(where, line) of each line of a chunk."""
        path = self.files[chunk.source]
        found = self._lines(chunk.source, chunk.begin, chunk.line)
        for _, number, raw in itertools.islice(found, chunk.count):
            yield f"{path}:{number}", raw


class JsonPairs(_Lines):
    """JSON lines of `FIELDS`."""

    kind = "jsonl"

    def _query_of(self, raw: bytes) -> bytes:
        fields = _json(raw)
        query = fields.get("query_id") if isinstance(fields, dict) else None
        return str(query).encode(errors="replace")

    def ids(self, chunk: Chunk) -> tuple[list[str], list[str]]:
        """See `Input`."""
        return _names(_json(raw) for _, raw in self._of(chunk))

    def read(self, chunk: Chunk) -> ChunkPairs:
        """See `Input`."""
        rows = (_row(_json(raw), where) for where, raw in self._of(chunk))
        return _of_rows(rows, chunk.first)


class BeirPairs(_Lines):
    """Pairs that TREC runs or qrels list; texts are in corpus.jsonl, queries.jsonl.

    The id columns are those of a run (6 columns), TREC qrels (4), BEIR qrels (3, with a
    header) or bare pairs (2).
    """

    kind = "runs"

    _connection: sqlite3.Connection | None = None

    def __init__(self, folder: Any, pairs: str, cache: pathlib.Path, lenient: bool):
        self.folder, self.cache, self.lenient = folder, cache, lenient
        pattern = folder / pairs if "://" not in pairs else open_path(pairs)
        files = sorted(pattern.parent.glob(pattern.name), key=str)
        if not files:
            raise DataError(
                f"{folder}: no file matches {pairs!r}; the pairs of a BEIR folder are "
                "listed by TREC runs, named in --config.pairs (qrels will do too)"
            )
        super().__init__(files)

    def _texts(self) -> tuple[Any, Any]:
        corpus = _find(self.folder, "corpus.jsonl")
        queries = _find(self.folder, "queries.jsonl")
        if queries is None:
            raise DataError(f"{self.folder}: has no queries.jsonl")
        return corpus, queries

    def settings(self) -> dict[str, Any]:
        """Fingerprints of the runs, the corpus and the queries."""
        texts = [sampled_fingerprint(path) for path in self._texts()]
        return {**super().settings(), "texts": texts}

    def _is_header(self, raw: bytes) -> bool:
        return raw.split()[0].lower() in (b"query-id", b"query_id")

    def _query_of(self, raw: bytes) -> bytes:
        return raw.split(None, 1)[0]

    def _pair(self, where: str, raw: bytes) -> _Row:
        try:
            cells = raw.decode().split()
        except UnicodeDecodeError as error:
            return _Row("", "", reason=f"{where}: byte {error.start} is not UTF-8")
        if len(cells) < 2 or len(cells) == 5:
            shown = " ".join(cells)[:80]
            reason = f"{where}: found {shown!r}, expected a TREC run's or qrels' line"
            return _Row("", "", reason=reason)
        pair = cells[0], cells[1 if len(cells) <= 3 else 2]
        try:
            return _Row(check_id("query", pair[0]), check_id("document", pair[1]))
        except FieldError as error:
            return _Row(*pair, reason=f"{where}: {error}")

    def ids(self, chunk: Chunk) -> tuple[list[str], list[str]]:
        """See `Input`."""
        rows = [self._pair(where, raw) for where, raw in self._of(chunk)]
        return [row.query_id for row in rows], [row.document_id for row in rows]

    def read(self, chunk: Chunk) -> ChunkPairs:
        """See `Input`."""
        found = [(where, self._pair(where, raw)) for where, raw in self._of(chunk)]
        queries = self._look_up("queries", {row.query_id for _, row in found})
        documents = self._look_up("documents", {row.document_id for _, row in found})

        def full(where: str, row: _Row) -> _Row:
            if row.reason:
                return row
            missing = ""
            if row.query_id not in queries:
                missing = f"query {row.query_id!r}, which queries.jsonl has not"
            elif row.document_id not in documents:
                missing = f"document {row.document_id!r}, which corpus.jsonl has not"
            if missing:
                reason = f"{where}: names the {missing}"
                return _Row(row.query_id, row.document_id, reason=reason)
            document = Document(row.document_id, *documents[row.document_id])
            [query] = queries[row.query_id]
            return _Row(row.query_id, row.document_id, query, document)

        return _of_rows((full(where, row) for where, row in found), chunk.first)

    def close(self) -> None:
        """See `Input`."""
        super().close()
        if self._connection:
            self._connection.close()
            self._connection = None

    def _look_up(self, table: str, names: set[str]) -> dict[str, tuple[str, ...]]:
        if self._connection is None:
            self._connection = self._store()
        result: dict[str, tuple[str, ...]] = {}
        wanted = sorted(names)
        for begin in range(0, len(wanted), _LOOKED_UP):
            some = wanted[begin : begin + _LOOKED_UP]
            marks = ",".join("?" * len(some))
            for name, *texts in self._connection.execute(
                f"SELECT * FROM {table} WHERE id IN ({marks})", some
            ):
                result[name] = tuple(texts)
        return result

    def _store(self) -> sqlite3.Connection:
        """The texts by id, in a file of the cache; made once a machine."""
        settings = self.settings()["texts"]
        target = self.cache / f"{digest([settings, self.lenient])}.sqlite"
        if not target.exists():
            _make_aside(target, self._fill)
        # The thread that reads ahead is another one than the one that verifies.
        return sqlite3.connect(
            f"file:{target.resolve()}?mode=ro", uri=True, check_same_thread=False
        )

    def _fill(self, target: pathlib.Path) -> None:
        print(f"[score] indexing the texts of {self.folder} in {target}", flush=True)
        corpus, queries = self._texts()
        how: dict[str, Any] = dict(
            on_error="skip" if self.lenient else "stop",
            skipped=formats.Skipped(),
            unique=False,  # the index below finds the ids that come twice
        )
        with sqlite3.connect(target) as store:
            store.execute("PRAGMA journal_mode = OFF")
            store.execute("PRAGMA synchronous = OFF")
            store.execute("CREATE TABLE documents (id TEXT, title TEXT, text TEXT)")
            store.execute("CREATE TABLE queries (id TEXT, text TEXT)")
            store.executemany(
                "INSERT INTO documents VALUES (?, ?, ?)",
                ((d.id, d.title, d.text) for d in formats.read_corpus(corpus, **how)),
            )
            store.executemany(
                "INSERT INTO queries VALUES (?, ?)",
                ((q.id, q.text) for q in formats.read_queries(queries, **how)),
            )
            for table, path in (("documents", corpus), ("queries", queries)):
                try:
                    store.execute(f"CREATE UNIQUE INDEX by_{table} ON {table} (id)")
                except sqlite3.IntegrityError as error:
                    (twice,) = store.execute(
                        f"SELECT id FROM {table} GROUP BY id HAVING COUNT(*) > 1"
                    ).fetchone()
                    raise DataError(
                        f"{path}: field '_id': {twice!r} comes twice; every id must be "
                        "the only one"
                    ) from error
        store.close()
