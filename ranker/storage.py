"""Files that appear whole or not at all, JSON with a seal, and digests of files."""

import hashlib
import json
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_HASHING_THREADS = 4


_MAX_JSON = 64 * 2**20  # bytes


def digest(value: Any) -> str:
    """Short digest of anything JSON can write."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file that is never seen half-written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    temporary.replace(path)


def read_json(path: pathlib.Path) -> Any:
    """A JSON file, of at most 64 MiB and a depth that Python can hold.

    Raises:
      ValueError: when it is none.
      OSError: when it cannot be read.
    """
    if path.stat().st_size > _MAX_JSON:
        raise ValueError(f"it is over {_MAX_JSON // 2**20} MiB")
    try:
        value = json.loads(path.read_bytes().decode())
        json.dumps(value)  # whoever writes it again needs more of the stack
        return value
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def write_sealed(path: pathlib.Path, value: dict[str, Any]) -> None:
    """Writes a JSON object with a digest of itself; see `read_sealed`."""
    write_json(path, {**value, "digest": digest(value)})


def read_sealed(path: pathlib.Path) -> dict[str, Any]:
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


def file_digests(folder: pathlib.Path) -> dict[str, list[Any]]:
    """Size in bytes and SHA-256 of every file below `folder`, by path from it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())

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
