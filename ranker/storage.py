"""The only place that writes a file whole: also sealed JSON, digests and paths.

A file appears under its name when it is complete and on the disk: it is written beside
that name, flushed, synchronised and renamed. An object in a bucket appears when its
upload is complete.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, Literal

from etils import epath

from ranker.errors import DataError

_HASHING_THREADS = 4
_MAX_JSON = 64 * 2**20  # bytes
_SCHEMES = ("gs", "s3", "az", "hf")


# --- paths and whole files ---


def is_local(path: Any) -> bool:
    """Whether a path is of this machine's file system, not of a bucket."""
    return "://" not in str(path)


def open_path(text: Any) -> Any:
    """The path of a local file or folder, or of one in a bucket.

    Raises:
      DataError: for a scheme that nothing here reads, or whose package is missing.
    """
    scheme, mark, _ = str(text).partition("://")
    if mark and scheme not in _SCHEMES:
        raise DataError(
            f"{text}: {scheme}:// is not known; name a local path, or one of "
            f"{', '.join(f'{one}://' for one in _SCHEMES)}"
        )
    path = epath.Path(text)
    try:
        if mark:
            path.exists()
    except ImportError as error:
        raise DataError(
            f"{text}: a package is missing that reads {scheme}:// ({error}); for gs:// "
            "it is gcsfs: pip install gcsfs"
        ) from error
    return path


@contextlib.contextmanager
def writing(path: Any, mode: Literal["w", "wb"] = "wb") -> Iterator[IO[Any]]:
    """Opens a file that appears when the block ends, whole or not at all.

    What exists and is not a file, such as a pipe or /dev/stdout, is written directly.

    Args:
      path: local, or of a bucket (`open_path`); its folder must exist.
      mode: "w" for text, as UTF-8.

    Raises:
      OSError: naming `path` when it cannot be written, as on a full disk.
    """
    encoding = "utf-8" if mode == "w" else None
    if is_local(path):
        path = pathlib.Path(path)
        if path.exists() and not path.is_file():
            with path.open(mode, encoding=encoding) as file:
                yield file
            return
        with replacing(path) as aside:
            with aside.open(mode, encoding=encoding) as file:
                yield file
        return
    memory = io.BytesIO()
    file: IO[Any] = memory
    if mode == "w":
        file = io.TextIOWrapper(memory, encoding=encoding)
    yield file
    file.flush()
    path.write_bytes(memory.getvalue())


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to write a file or folder to, which is renamed to `path` at the end.

    For what only a library can write; all else is written by `writing`. A folder takes
    the place of nothing, or of an empty one.

    Raises:
      OSError: naming `path` when it cannot be written.
    """
    aside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        yield aside
        for one in [*aside.rglob("*"), aside]:
            synchronise(one)
        aside.replace(path)
        with contextlib.suppress(OSError):  # some file systems have no such call
            synchronise(path.parent)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)


def synchronise(path: pathlib.Path) -> None:
    """Waits until a file or a folder's list of names is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text that is never seen half-written, and makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path, "w") as file:
        file.write(text)


# --- JSON ---


def digest(value: Any) -> str:
    """Short digest of anything JSON can write."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Any, value: Any, *, indent: int | None = 1) -> None:
    """Writes a JSON file that is never seen half-written."""
    with writing(path, "w") as file:
        file.write(json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def read_json(path: Any) -> Any:
    """A JSON file, of at most 64 MiB and a depth that Python can hold.

    Raises:
      ValueError: when it is none.
      OSError: when it cannot be read.
    """
    if is_local(path) and os.path.getsize(path) > _MAX_JSON:
        raise ValueError(f"it is over {_MAX_JSON // 2**20} MiB")
    try:
        value = json.loads(path.read_bytes().decode())
        json.dumps(value)  # whoever writes it again needs more of the stack
        return value
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def write_sealed(path: Any, value: dict[str, Any], *, indent: int | None = 1) -> None:
    """Writes a JSON object with a digest of itself; see `read_sealed`."""
    write_json(path, {**value, "digest": digest(value)}, indent=indent)


def read_sealed(path: Any) -> dict[str, Any]:
    """What `write_sealed` wrote.

    Raises:
      ValueError: when the file is not what was written.
    """
    value = read_json(path)
    if not isinstance(value, dict) or "digest" not in value:
        raise ValueError("it has no digest")
    if value.pop("digest") != digest(value):
        raise ValueError("its digest does not fit: it has been damaged or edited")
    return value


# --- digests of files ---


def file_digests(
    folder: pathlib.Path, keep: Callable[[str], bool] = lambda name: True
) -> dict[str, list[Any]]:
    """Size in bytes and SHA-256 of every file below `folder`, by path from it.

    Args:
      folder: that they lie in.
      keep: says of a path from `folder` whether that file is read.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and keep(path.relative_to(folder).as_posix())
    )

    def read(path: pathlib.Path) -> list[Any]:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        return [path.stat().st_size, content]

    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        found = list(pool.map(read, files))
    return {
        str(path.relative_to(folder)): one
        for path, one in zip(files, found, strict=True)
    }


def find_damage(
    folder: pathlib.Path,
    expected: dict[str, list[Any]],
    *,
    read_up_to: int | None = None,
) -> str | None:
    """The first file below `folder` that is not as `file_digests` found it, and how.

    Args:
      folder: that they lie in.
      expected: what `file_digests` returned; other files are not looked at.
      read_up_to: bytes; of larger files the size alone is compared. None: all are read.
    """

    def check(name: str) -> str | None:
        size, content = expected[name]
        path = folder / name
        try:
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes of {size}"
            if read_up_to is not None and size > read_up_to:
                return None
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != content:
                    return f"{name} has another content than was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        return None

    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        return next((bad for bad in pool.map(check, expected) if bad), None)
