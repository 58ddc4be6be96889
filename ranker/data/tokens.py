"""A corpus tokenised once: token ids on disk that stages, epochs and hosts share.

    WORKDIR/prepare/tokens/KEY/ids.bin    int32 ids of all documents, in their order
    WORKDIR/prepare/tokens/KEY/ends.npy   int64, where each document ends in them

KEY is a digest of the documents, the tokenizer and the template, so that a changed one
gives other files. They are memory-mapped: a process holds what it has read, and the
processes of a host hold it once.
"""

import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import numpy as np

from ranker.data.pairs import Indexed
from ranker.data.records import Document
from ranker.data.text import Tokenizer

_AT_ONCE = 2048  # documents a call of the tokenizer, which works on all cores


class TokenStore:
    """Token ids of every document of a corpus, by its row."""

    def __init__(self, folder: pathlib.Path):
        """Maps the files; reads no ids."""
        # Views as plain arrays: a slice of a memmap costs ten times that of an array.
        self._ends = np.asarray(np.load(folder / "ends.npy", mmap_mode="r"))
        size = int(self._ends[-1]) if len(self._ends) else 0
        # An empty file cannot be mapped.
        self._ids = (
            np.asarray(np.memmap(folder / "ids.bin", np.int32, "r", shape=(size,)))
            if size
            else np.zeros(0, np.int32)
        )

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> np.ndarray:
        """Ids of a document, int32; not to be written to."""
        begin = self._ends[row - 1] if row else 0
        return self._ids[begin : self._ends[row]]

    def of(self, places: np.ndarray, rows: np.ndarray) -> dict[int, np.ndarray]:
        """Ids of some documents, by other places: `rows[i]` is at `places[i]`."""
        pairs = zip(places.tolist(), rows.tolist(), strict=True)
        return {place: self[row] for place, row in pairs}


def key_of(corpus_digest: str, tokenizer: Tokenizer) -> str:
    """What the ids depend on, as a folder's name."""
    parts = (corpus_digest, tokenizer.digest, tokenizer.template_digest)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def find_store(folder: pathlib.Path, key: str) -> TokenStore | None:
    """The ids under `folder`, if they have been made."""
    found = folder / key
    return TokenStore(found) if found.is_dir() else None


def make_store(
    folder: pathlib.Path, key: str, corpus: Indexed[Document], tokenizer: Tokenizer
) -> TokenStore:
    """The ids under `folder`; they are made where they are missing.

    Two processes may make them at the same time: whole folders take their name at once,
    and the first one stays.
    """
    found = find_store(folder, key)
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    made = pathlib.Path(tempfile.mkdtemp(prefix=f".{key}.", dir=folder))
    ends, end = np.zeros(len(corpus), np.int64), 0
    with (made / "ids.bin").open("wb") as file:
        for row, ids in enumerate(_tokenise(corpus, tokenizer)):
            end += len(ids)
            ends[row] = end
            file.write(np.asarray(ids, np.int32).tobytes())
        file.flush()
        os.fsync(file.fileno())
    np.save(made / "ends.npy", ends)
    try:
        os.rename(made, folder / key)
    except OSError:  # another process was first
        shutil.rmtree(made)
    return TokenStore(folder / key)


def _tokenise(corpus: Indexed[Document], tokenizer: Tokenizer) -> Iterator[list[int]]:
    for first in range(0, len(corpus), _AT_ONCE):
        rows = range(first, min(first + _AT_ONCE, len(corpus)))
        yield from tokenizer.documents([corpus[row] for row in rows])
