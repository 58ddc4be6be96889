"""Which files a path means: one file, a folder of parts, or a pattern; anywhere."""

import pathlib
from collections.abc import Iterator
from typing import Any

from ranker.errors import DataError, shown

PACKED = (".gz", ".zst")
# Suffixes by kind, all of which may be followed by one of PACKED, but for Parquet.
TABLES = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".tsv": "tsv",
    ".txt": "tsv",
    ".tab": "tsv",
    ".csv": "csv",
}
# MS MARCO's second version has JSON lines in files named so, without a suffix.
_JSON_LINES = ("msmarco_passage_", "msmarco_doc_")
_NAMED = 12  # files that a message lists


def kind_of(path: Any) -> str:
    """The kind of a table by its name: parquet, jsonl, tsv, csv; "" for others."""
    name = bare(path.name)
    if name.startswith(_JSON_LINES) and "." not in name:
        return "jsonl"
    return TABLES.get(pathlib.PurePosixPath(name).suffix.lower(), "")


def bare(name: str) -> str:
    """A file's name without the suffix of what it is packed by."""
    for suffix in PACKED:
        name = name.removesuffix(suffix)
    return name


def expand(path: Any, what: str) -> list[Any]:
    """The tables that a file, folder or glob pattern names, by name.

    A folder is searched with all that is below it; what begins with "_" or "." is left
    out, as are files of other kinds.

    Args:
      path: local, or of a bucket.
      what: what the files should be, for the message.

    Raises:
      DataError: when there is none, listing what is there.
    """
    if any(c in path.name for c in "*?["):
        found = sorted(path.parent.glob(path.name), key=str)
        files = [one for hit in found for one in below(hit)]
        there = sorted(one.name for one in _children(path.parent))
    else:
        files = list(below(path))
        there = sorted(one.name for one in _children(path))
    if files and files == [path] and not kind_of(path):
        raise DataError(
            f"{path}: {what} is .jsonl, .tsv, .csv or .parquet (all but the last may "
            "be .gz or .zst); save a spreadsheet as text with tabs, in UTF-8"
        )
    tables = [one for one in files if kind_of(one)]
    if not tables and not path.exists() and not there:
        near = [one.name for one in _children(path.parent)]
        hint = f"; {path.parent} has {', '.join(sorted(near)[:_NAMED])}" if near else ""
        raise DataError(f"{path}: no such file or folder{hint}")
    if not tables:
        raise DataError(
            f"{path}: {what} is .jsonl, .tsv, .csv or .parquet files; found "
            f"{shown(there[:_NAMED]) if there else 'none'}"
        )
    return tables


def _children(path: Any) -> list[Any]:
    return list(path.iterdir()) if path.is_dir() else []


def below(path: Any) -> Iterator[Any]:
    """The file, or all files below a folder but those that begin with "_" or "."."""
    if not path.is_dir():
        if path.exists():
            yield path
        return
    for one in sorted(path.iterdir(), key=str):
        if not one.name.startswith(("_", ".")):
            yield from below(one)


def fingerprint(path: Any) -> list[Any]:
    """Name, size and time of a file."""
    stat = path.stat()
    if hasattr(stat, "st_size"):
        return [str(path), stat.st_size, stat.st_mtime_ns]
    return [str(path), stat.length, stat.mtime]  # of etils, for buckets


def fingerprints(path: Any) -> list[list[Any]]:
    """Fingerprints of a file, or of every file below a folder or pattern."""
    if any(c in path.name for c in "*?["):
        found = sorted(path.parent.glob(path.name), key=str)
    else:
        found = [path]
    return [fingerprint(one) for hit in found for one in _every(hit)]


def _every(path: Any) -> Iterator[Any]:
    if path.is_dir():
        for one in sorted(path.iterdir(), key=str):
            yield from _every(one)
    elif path.is_file():
        yield path
