"""Lines of text files, plain or gzip, local or remote: the one reader of them.

Input files are untrusted. What they can make a reader hold in memory is bounded by
`MAX_LINE`, and what a gzip file may unpack to by `MAX_EXPANSION`.
"""

import contextlib
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from ranker.errors import DataError

MAX_LINE = 16 * 2**20  # bytes; a longer line is not a record
# A gzip file may unpack to so many times its size, and this many bytes. Text packs 3 to
# 20 times, and gzip at most 1,032 times.
MAX_EXPANSION = 200
FREE_EXPANSION = 64 * 2**20
_BUFFER = 2**18
_NEAR = 20  # names of a folder that a message lists


class _Unzipped(io.RawIOBase):
    """What a gzip file unpacks to, up to a bound."""

    def __init__(self, path: Any, file: Any):
        self._most = FREE_EXPANSION + MAX_EXPANSION * file.seek(0, os.SEEK_END)
        file.seek(0)
        self._path, self._zipped = path, gzip.GzipFile(fileobj=file)

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True; backwards it unpacks from the beginning again."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.RawIOBase`."""
        return self._zipped.seek(offset, whence)

    def tell(self) -> int:
        """See `io.RawIOBase`."""
        return self._zipped.tell()

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`."""
        size = self._zipped.readinto(buffer)
        if self._zipped.tell() > self._most:
            raise DataError(
                f"{self._path}: unpacks to over {MAX_EXPANSION} times its size, as no "
                "text does; if it is what you want, unpack it with gunzip"
            )
        return size


class _Zstandard(io.RawIOBase):
    """What a Zstandard file unpacks to, up to a bound."""

    def __init__(self, path: Any, file: Any):
        self._most = FREE_EXPANSION + MAX_EXPANSION * file.seek(0, os.SEEK_END)
        self._path, self._file = path, file
        self._begin()

    def _begin(self) -> None:
        self._file.seek(0)
        self._at = 0
        self._stream = pa.CompressedInputStream(pa.PythonFile(self._file, "r"), "zstd")

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True; backwards it unpacks from the beginning again."""
        return True

    def tell(self) -> int:
        """See `io.RawIOBase`."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.RawIOBase`; not from the end."""
        assert whence != os.SEEK_END
        target = offset + (self._at if whence == os.SEEK_CUR else 0)
        if target < self._at:
            self._begin()
        while self._at < target and (part := self._read(target - self._at)):
            self._at += len(part)
        return self._at

    def _read(self, size: int) -> bytes:
        return self._stream.read(min(size, _BUFFER))

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`."""
        part = self._read(len(buffer))
        buffer[: len(part)] = part
        self._at += len(part)
        if self._at > self._most:
            raise DataError(
                f"{self._path}: unpacks to over {MAX_EXPANSION} times its size, as no "
                "text does; if it is what you want, unpack it with unzstd"
            )
        return len(part)


def unzipped(path: Any, file: Any) -> Any:
    """The open binary `file`, or what it unpacks to; seekable.

    It may be gzip or Zstandard.
    """
    start = file.read(4)
    file.seek(0)
    if start == b"\x28\xb5\x2f\xfd":
        return io.BufferedReader(_Zstandard(path, file), _BUFFER)
    if path.name.endswith(".zst"):
        raise DataError(
            f"{path}: is named .zst and is not Zstandard; rename it or compress it"
        )
    zipped = start[:2] == b"\x1f\x8b"
    if not zipped and path.name.endswith(".gz"):
        raise DataError(
            f"{path}: is named .gz and is not gzip; rename it or compress it"
        )
    return io.BufferedReader(_Unzipped(path, file), _BUFFER) if zipped else file


@contextlib.contextmanager
def open_file(path: Any) -> Iterator[Any]:
    """A binary file, unzipped where it is gzip; missing files name what is there.

    Reading it raises `OSError`, `EOFError` or `zlib.error` where the gzip stream is
    broken, and `DataError` where it unpacks to more than `MAX_EXPANSION` allows.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder, expected a file")
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is a pipe or a device, expected a file")
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: {_why_missing(path, error)}") from error
    with file:
        yield unzipped(path, file)


def _why_missing(path: Any, error: OSError) -> str:
    if not isinstance(error, FileNotFoundError):
        return str(error)
    if os.path.islink(path):
        return f"is a link to {os.readlink(path)}, which is not there"
    near = []
    if path.parent.is_dir():
        near = sorted(other.name for other in path.parent.iterdir())[:_NEAR]
    hint = f"; {path.parent} has {', '.join(near)}" if near else ""
    return f"no such file{hint}"


def raw_lines(path: Any, file: Any, number: int = 0) -> Iterator[tuple[int, bytes]]:
    """Lines of an open binary file from where it stands, with their numbers.

    Args:
      path: of the file, for messages.
      file: that `open_file` or `unzipped` gave.
      number: of the line before.

    Raises:
      DataError: for broken gzip, a line over `MAX_LINE` or UTF-16, naming the line.
    """
    while True:
        number += 1
        try:
            raw = file.readline(MAX_LINE)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(
                f"{path}:{number}: the gzip stream is broken ({error}); the file is "
                "truncated or damaged: fetch it again"
            ) from error
        except OSError as error:
            raise DataError(f"{path}:{number}: cannot be read: {error}") from error
        if not raw:
            return
        if len(raw) >= MAX_LINE and not raw.endswith(b"\n"):
            raise DataError(
                f"{path}:{number}: the line is over {MAX_LINE // 2**20} MiB; this is "
                "no file of one record a line"
            )
        if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(
                f"{path}:1: the file is UTF-16, as a spreadsheet's 'Unicode text' is; "
                "save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"
            )
        yield number, raw


def read_lines(path: Any) -> Iterator[tuple[int, str]]:
    """Lines of a text file, packed or not, with their numbers from 1; no empty ones.

    Raises:
      DataError: for a missing file, broken gzip, text that is not UTF-8 or a line over
        `MAX_LINE`, naming the line.
    """
    with open_file(path) as file:
        for number, raw in raw_lines(path, file):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}: byte {error.start} is not UTF-8; convert the "
                    "file to UTF-8 (a spreadsheet must be saved as text, not as .xlsx)"
                ) from error
            if line.strip():
                yield number, line.rstrip("\r\n")
