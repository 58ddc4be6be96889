"""BM25, the first stage and the baseline (Robertson et al., 1994; Lucene's variant).

    score(q, d) = sum over w in q:  idf(w) * tf / (tf + k1 * (1 - b + b * |d| / avg))
    idf(w) = ln(1 + (N - df + 0.5) / (df + 0.5))

Words are those of `words`. Stop words are left out of a query that has other words, and
do not count for |d|. A word that a query repeats counts as often as it stands there.
"""

import json
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import scipy.sparse

from ranker.data import words as analysis
from ranker.data.words import STOP_WORDS

_MAX_WORDS = 10_000  # of a document; models read far fewer


class Bm25:
    """An index of texts: one sparse row of word weights each."""

    def __init__(self, vocabulary: dict[str, int], weights: Any, *, language: str = ""):
        """Takes what `build` has made.

        Args:
          vocabulary: columns by word.
          weights: scipy.sparse.csc_matrix [texts, words].
          language: that words are stemmed by.
        """
        self._vocabulary, self._by_word, self._language = vocabulary, weights, language
        self._words = analysis.make_analyzer(language)
        self._by_text: Any = None  # made when it is first needed

    @classmethod
    def build(
        cls,
        texts: Iterable[str],
        *,
        k1: float = 1.2,
        b: float = 0.75,
        language: str = "",
    ) -> "Bm25":
        """Indexes texts; a text's row is its place in the order."""
        vocabulary: dict[str, int] = {}
        tf, lengths = _count(texts, vocabulary, analysis.make_analyzer(language))
        num_texts = len(lengths)
        average = lengths.mean() if num_texts and lengths.any() else 1.0
        df = np.bincount(tf.indices, minlength=len(vocabulary))
        idf = np.log1p((num_texts - df + 0.5) / (df + 0.5))
        norm = np.repeat(k1 * (1 - b + b * lengths / average), np.diff(tf.indptr))
        tf.data = (idf[tf.indices] * tf.data / (tf.data + norm)).astype(np.float32)
        weights: Any = scipy.sparse.csc_matrix(tf, dtype=np.float32)
        return cls(vocabulary, weights, language=language)

    def save(self, folder: pathlib.Path) -> None:
        """Writes the index, for `load` in another process."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("data", "indices", "indptr"):
            np.save(folder / f"{name}.npy", getattr(self._by_word, name))
        about = {"shape": self._by_word.shape, "language": self._language}
        (folder / "index.json").write_text(json.dumps(about))
        (folder / "words.json").write_text(json.dumps(list(self._vocabulary)))

    @classmethod
    def load(cls, folder: pathlib.Path) -> "Bm25":
        """What `save` wrote; the weights stay in their files."""
        about = json.loads((folder / "index.json").read_text())
        found = json.loads((folder / "words.json").read_text())
        parts = [
            np.load(folder / f"{name}.npy", mmap_mode="r")
            for name in ("data", "indices", "indptr")
        ]
        weights = scipy.sparse.csc_matrix(tuple(parts), about["shape"], copy=False)
        vocabulary = {word: column for column, word in enumerate(found)}
        return cls(vocabulary, weights, language=about["language"])

    def _counts(self, query: str) -> tuple[list[int], np.ndarray]:
        found = self._words(query)
        found = [word for word in found if word not in STOP_WORDS] or found
        counts = Counter(
            self._vocabulary[word] for word in found if word in self._vocabulary
        )
        return list(counts), np.array(list(counts.values()), np.float32)

    def search(self, query: str, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best texts that share a word with the query.

        Returns:
          Rows (int64) and scores (float32), best first; equal scores by row.
        """
        columns, counts = self._counts(query)
        matrix: Any = self._by_word  # scipy's stubs know no indptr
        total = np.zeros(matrix.shape[0], np.float32)
        for column, count in zip(columns, counts, strict=True):
            part = slice(matrix.indptr[column], matrix.indptr[column + 1])
            total[matrix.indices[part]] += count * matrix.data[part]
        found = np.flatnonzero(total)
        if len(found) > k:
            # Everything tied with the k-th stays in, so that the cut is by row too.
            threshold = np.partition(total[found], -k)[-k]
            found = found[total[found] >= threshold]
        order = np.lexsort((found, -total[found]))[:k]
        rows = found[order].astype(np.int64)
        return rows, total[rows]

    def score(self, query: str, rows: np.ndarray) -> np.ndarray:
        """Scores of the texts `rows` (int64 [n]) for a query, float32 [n]."""
        columns, counts = self._counts(query)
        if not columns or not len(rows):
            return np.zeros(len(rows), np.float32)
        if self._by_text is None:
            self._by_text = self._by_word.tocsr()
        part = self._by_text[rows][:, columns]
        return np.asarray(part @ counts, np.float32).ravel()


def _count(
    texts: Iterable[str],
    vocabulary: dict[str, int],
    words: Callable[[str], list[str]],
) -> tuple[Any, np.ndarray]:
    """How often each text has each word, [texts, words], and the texts' lengths."""
    columns, counts = _Numbers(np.int32), _Numbers(np.int32)
    ends, lengths = [0], []
    for text in texts:
        found = words(text)[:_MAX_WORDS]
        numbers = Counter(
            vocabulary.setdefault(word, len(vocabulary)) for word in found
        )
        columns.extend(numbers.keys())
        counts.extend(numbers.values())
        ends.append(ends[-1] + len(numbers))
        lengths.append(sum(word not in STOP_WORDS for word in found))
    tf: Any = scipy.sparse.csr_matrix(
        (counts.array().astype(np.float64), columns.array(), np.array(ends, np.int64)),
        shape=(len(lengths), len(vocabulary)),
    )
    return tf, np.array(lengths, np.float64)


class _Numbers:
    """Many small numbers, a few bytes each."""

    def __init__(self, dtype: type[np.integer]):
        self._dtype, self._parts, self._last = dtype, [], []

    def extend(self, values: Iterable[int]) -> None:
        self._last.extend(values)
        if len(self._last) > 1 << 20:
            self._parts.append(np.array(self._last, self._dtype))
            self._last = []

    def array(self) -> np.ndarray:
        return np.concatenate([*self._parts, np.array(self._last, self._dtype)])
