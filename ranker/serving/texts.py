"""Texts of a request to rows of tokens, with a cache of documents' ids."""

import collections
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ranker.data.text import Segment
from ranker.serving.frame import PairEncoder, PairTexts

_CACHE_BYTES = 128 << 20  # kept, at most
_ENTRY_BYTES = 400  # of a document beside its ids: key, array, places in a table
_CHARACTERS = 4  # of a token, about; only room in the queue is reserved by it


class DocumentCache:
    """Ids of documents by a digest of their text; the least used leave first.

    Ids beyond a pair's length are never read, so they are not kept.
    """

    def __init__(self, limit: int = _CACHE_BYTES):
        """Takes the bytes that it may hold."""
        self.limit, self.bytes = limit, 0
        self.hits = self.misses = 0
        self._kept: collections.OrderedDict[bytes, np.ndarray]
        self._kept = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> np.ndarray | None:
        """The ids of a document, if they are there."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                self.misses += 1
                return None
            self._kept.move_to_end(key)
            self.hits += 1
            return found

    def put(self, key: bytes, ids: np.ndarray) -> None:
        """Keeps the ids of a document."""
        with self._lock:
            if key in self._kept or ids.nbytes + _ENTRY_BYTES > self.limit:
                return
            self._kept[key] = ids
            self.bytes += ids.nbytes + _ENTRY_BYTES
            while self.bytes > self.limit:
                _, gone = self._kept.popitem(last=False)
                self.bytes -= gone.nbytes + _ENTRY_BYTES


def text_digest(document: PairTexts) -> bytes:
    """Key of a document: which text is the title matters."""
    title, text = (part.encode() for part in document)
    return hashlib.blake2b(
        len(title).to_bytes(8, "little") + title + text, digest_size=16
    ).digest()


@dataclass(frozen=True)
class Cut:
    """How a request wants long texts to be cut."""

    document_tokens: int = 0  # of a document, at most; 0: what fits
    total_tokens: int = 0  # of a pair, at most; 0: the contract's length
    left: bool = False  # the first tokens go, not the last


@dataclass(frozen=True)
class TokenizedRequest:
    """What a request's pairs are as tokens."""

    segments: list[Segment]
    truncated: int  # pairs of which something was cut
    tokens: int  # all that is read


class TextEncoder:
    """Makes rows; a query is tokenised once, a document once while it is kept."""

    def __init__(self, encoder: PairEncoder, cache: DocumentCache | None = None):
        self.encoder = encoder
        self.cache = DocumentCache() if cache is None else cache

    def estimate(self, query: str, documents: Sequence[PairTexts]) -> int:
        """About how many tokens the pairs have; at most as many as can be read."""
        frame = self.encoder.frame
        around = frame.fixed + len(query) // _CHARACTERS + 1
        return sum(
            min(around + (len(title) + len(text)) // _CHARACTERS + 1, frame.length)
            for title, text in documents
        )

    def rows(
        self, query: str, documents: Sequence[PairTexts], cut: Cut
    ) -> TokenizedRequest:
        """Rows of one query's documents, in their order."""
        frame, segments, truncated = self.encoder.frame, [], 0
        ids = self.encoder.query(query)
        kept = frame.longest_query(len(ids))
        room = frame.room(len(ids))
        if cut.total_tokens:
            room = min(room, max(cut.total_tokens - frame.fixed - kept, 1))
        if cut.document_tokens:
            room = min(room, cut.document_tokens)
        for document in self._documents(documents):
            truncated += len(document) > room or kept < len(ids)
            if cut.left and len(document) > room:
                document = self._whole(documents[len(segments)])[-room:]
            segments.append(frame.segment(ids, document[:room]))
        tokens = sum(len(one.tokens) for one in segments)
        return TokenizedRequest(segments, truncated, tokens)

    def _whole(self, document: PairTexts) -> list[int]:
        return self.encoder.documents([document])[0]

    def _documents(self, documents: Sequence[PairTexts]) -> list[list[int]]:
        """Ids of documents, one more than can be read where they are longer."""
        keys = [text_digest(document) for document in documents]
        found = {key: self.cache.get(key) for key in dict.fromkeys(keys)}
        missing = {
            key: document
            for key, document in zip(keys, documents, strict=True)
            if found[key] is None
        }
        longest = self.encoder.frame.length + 1
        made = self.encoder.documents(list(missing.values()))
        known = {key: ids for key, ids in found.items() if ids is not None}
        for key, ids in zip(missing, made, strict=True):
            known[key] = np.array(ids[:longest], np.int32)
            self.cache.put(key, known[key])
        return [known[key].tolist() for key in keys]
