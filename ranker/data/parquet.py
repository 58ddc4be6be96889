"""Parquet files from strangers, batch by batch, within bounds.

Texts are read as dictionaries, so that one that comes a million times is held once, and
what they would unpack to is counted before it is unpacked.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from ranker.data import lines
from ranker.errors import DataError, shown

_compute: Any = pyarrow.compute  # makes its functions while it is imported
_AT_ONCE = 32768  # rows
_MOST = 2**30  # bytes of text that a batch may hold


def is_text(kind: pa.DataType) -> bool:
    """Whether a column's type is text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def columns(path: Any) -> pa.Schema:
    """Names and types of a file's columns.

    Raises:
      DataError: when it is not a Parquet file, or a column is there twice.
    """
    with lines.open_file(path), _readable(path), _open(path) as file:
        schema = file.schema_arrow
    if len(set(schema.names)) < len(schema.names):
        raise DataError(f"{path}: a column is there twice: {shown(schema.names)}")
    return schema


def read_batches(
    path: Any, names: Callable[[pa.Schema], Sequence[str]], *, at_once: int = _AT_ONCE
) -> Iterator[pa.RecordBatch]:
    """Batches of some columns; texts are plain strings in them.

    Args:
      path: local, or of a bucket.
      names: which columns, of those that there are.
      at_once: rows a batch, at most.

    Raises:
      DataError: when the file cannot be read on, or its texts unpack to too much.
    """
    schema = columns(path)
    wanted = list(names(schema))
    texts = [name for name in wanted if is_text(schema.field(name).type)]
    with _readable(path), _open(path, read_dictionary=texts) as file:
        left = lines.FREE_EXPANSION + lines.MAX_EXPANSION * _size(path)
        number = 0
        for batch in file.iter_batches(
            batch_size=at_once, columns=wanted, use_threads=False
        ):
            cells = []
            for name in wanted:
                values, size = _plain(path, name, batch[name])
                _check_utf8(path, name, values, number)
                cells.append(values)
                left -= size
                if left < 0:
                    raise DataError(
                        f"{path}: row {number}: its texts are over "
                        f"{lines.MAX_EXPANSION} times the file's size, as no real "
                        "ones are"
                    )
            number += len(batch)
            yield pa.RecordBatch.from_arrays(cells, wanted)


def read_rows(path: Any, names: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of those of the columns `names` that exist, with numbers from 1."""
    number = 0

    def known(schema: pa.Schema) -> list[str]:
        found = [name for name in schema.names if not names or name in names]
        return found or schema.names

    for batch in read_batches(path, known, at_once=4096):
        with _readable(path):
            rows = batch.to_pylist()
        for row in rows:
            number += 1
            yield number, row


@contextlib.contextmanager
def _readable(path: Any) -> Iterator[None]:
    """Arrow's many exceptions as one sentence."""
    try:
        yield
    except (pa.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: is not a Parquet file that can be read: {error}"
        ) from error


def _open(path: Any, **how: Any) -> pq.ParquetFile:
    local = "://" not in str(path)
    return pq.ParquetFile(str(path) if local else path.open("rb"), **how)


def _size(path: Any) -> int:
    stat = path.stat()
    return stat.st_size if hasattr(stat, "st_size") else stat.length


def _check_utf8(path: Any, name: str, column: Any, before: int) -> None:
    """Raises `DataError` for texts that are not UTF-8; `before` are rows before."""
    if not is_text(column.type):
        return
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        for number, text in enumerate(column, before + 1):
            try:
                text.as_py()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: row {number}: column {name!r}: byte {error.start} of its "
                    "text is not UTF-8; write the file again with texts in UTF-8"
                ) from error
        raise


def _plain(path: Any, name: str, column: Any) -> tuple[Any, int]:
    """A column without its dictionary, and the bytes of its texts."""
    if not pa.types.is_dictionary(column.type):
        return column, 0
    known, places = column.dictionary, column.indices
    if not is_text(known.type):
        return known.take(places), 0
    lengths = _compute.cast(_compute.binary_length(known), pa.int64()).take(places)
    longest = _compute.max(lengths).as_py() or 0
    if longest >= lines.MAX_LINE:
        raise DataError(
            f"{path}: column {name!r} holds a text of {longest} bytes, over "
            f"{lines.MAX_LINE // 2**20} MiB; this is not a table of texts"
        )
    size = _compute.sum(lengths).as_py() or 0
    if size > _MOST:
        raise DataError(
            f"{path}: column {name!r}: {len(column)} rows hold {size / 2**20:.0f} MiB "
            "of text; this is not a table of texts"
        )
    return known.take(places), size
