"""BM25, the first stage and the baseline (Robertson et al., 1994; Lucene's variant).

    score(q, d) = sum over w in q:  idf(w) * tf / (tf + k1 * (1 - b + b * |d| / avg))
    idf(w) = ln(1 + (N - df + 0.5) / (df + 0.5))

Words are runs of letters and digits in lower case, without the stop words below;
nothing is stemmed. A word that a query repeats counts as often as it stands there.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.sparse

_WORD = re.compile(r"[^\W_]+")
STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the "
    "their then there these they this to was will with".split()
)


def words(text: str) -> list[str]:
    """The words of a text, as BM25 counts them."""
    return [word for word in _WORD.findall(text.lower()) if word not in STOP_WORDS]


class Bm25:
    """An index of texts: one sparse row of word weights each."""

    def __init__(self, vocabulary: dict[str, int], weights: scipy.sparse.csc_matrix):
        """Takes what `build` has made: words by column, and weights [texts, words]."""
        self._vocabulary = vocabulary
        self._by_word = weights
        self._by_text: Any = weights.tocsr()

    @classmethod
    def build(cls, texts: Iterable[str], *, k1: float = 1.2, b: float = 0.75) -> "Bm25":
        """Indexes texts; a text's row is its place in the order."""
        vocabulary: dict[str, int] = {}
        columns: list[int] = []
        counts: list[int] = []
        ends = [0]
        for text in texts:
            found = Counter(
                vocabulary.setdefault(word, len(vocabulary)) for word in words(text)
            )
            columns.extend(found.keys())
            counts.extend(found.values())
            ends.append(len(columns))
        num_texts = len(ends) - 1
        tf = scipy.sparse.csr_matrix(
            (np.array(counts, np.float64), np.array(columns, np.int64), ends),
            shape=(num_texts, len(vocabulary)),
        )
        lengths = np.asarray(tf.sum(axis=1)).ravel()
        average = lengths.mean() if num_texts and lengths.any() else 1.0
        df = np.bincount(tf.indices, minlength=len(vocabulary))
        idf = np.log1p((num_texts - df + 0.5) / (df + 0.5))
        norm = np.repeat(k1 * (1 - b + b * lengths / average), np.diff(tf.indptr))
        tf.data = (idf[tf.indices] * tf.data / (tf.data + norm)).astype(np.float32)
        return cls(vocabulary, scipy.sparse.csc_matrix(tf, dtype=np.float32))

    def _counts(self, query: str) -> tuple[list[int], np.ndarray]:
        found = Counter(
            self._vocabulary[word] for word in words(query) if word in self._vocabulary
        )
        return list(found), np.array(list(found.values()), np.float32)

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
        part = self._by_text[rows][:, columns]
        return np.asarray(part @ counts, np.float32).ravel()
