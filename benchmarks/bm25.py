"""BM25's NDCG on collections: with and without stemming, against bm25s.

    python benchmarks/bm25.py ../shared/data/nqqed ../shared/data/medquad

Folders are BEIR's. Both search the whole corpus for the judged queries of test (dev,
where there is no test), with k1 1.2 and b 0.75, and drop the same stop words; bm25s
takes its own words (of two characters and more) and Snowball's stemmer for English. The
last column but one is this package's index over the words of bm25s, stemmed: what is
left of the difference is not due to words. The last is the p-value of the paired
randomisation test between both, stemmed, each with its own words.
"""

import argparse
import pathlib
import time
from collections.abc import Callable
from unittest import mock

import bm25s
import numpy as np
import Stemmer

from ranker import config
from ranker.data import words
from ranker.data.bm25 import Bm25
from ranker.data.sources import Files
from ranker.data.words import STOP_WORDS
from ranker.metrics.significance import randomisation_test

_DEPTH = 10
Search = Callable[[list[str]], list[np.ndarray]]  # rows of each query, best first


def ours(texts: list[str], language: str) -> Search:
    """This package's."""
    index = Bm25.build(texts, language=language)
    return lambda queries: [index.search(query, _DEPTH)[0] for query in queries]


def tokens(texts: list[str], stemmer: Stemmer.Stemmer | None) -> list[list[str]]:
    """Words of each text as bm25s has them, without stop words."""
    return bm25s.tokenize(
        texts,
        stopwords=sorted(STOP_WORDS),
        stemmer=stemmer,
        return_ids=False,
        show_progress=False,
    )


def mixed(texts: list[str], stemmer: Stemmer.Stemmer) -> Search:
    """This package's index over bm25s's words."""

    def joined(found: list[str]) -> list[str]:
        # Marked, so that no stem is a stop word.
        return [" ".join(f"_{w}" for w in one) for one in tokens(found, stemmer)]

    with mock.patch.object(words, "make_analyzer", lambda language: str.split):
        index = Bm25.build(joined(texts))
    return lambda queries: [index.search(one, _DEPTH)[0] for one in joined(queries)]


def theirs(texts: list[str], stemmer: Stemmer.Stemmer | None) -> Search:
    """bm25s with the same settings."""
    index = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    index.index(tokens(texts, stemmer), show_progress=False)

    def search(queries: list[str]) -> list[np.ndarray]:
        k = min(_DEPTH, len(texts))
        rows, scores = index.retrieve(
            tokens(queries, stemmer), k=k, show_progress=False
        )
        pairs = zip(rows, scores, strict=True)
        return [row[score > 0] for row, score in pairs]

    return search


def ndcg(grades: dict[int, int], ideal: list[int], rows: np.ndarray) -> float:
    """NDCG@10 with trec_eval's gain, the grade itself."""
    discounts = 1 / np.log2(np.arange(2, _DEPTH + 2))
    gains = [max(0, grades.get(int(row), 0)) for row in rows[:_DEPTH]]
    best = sorted((max(0, one) for one in ideal), reverse=True)[:_DEPTH]
    most = float(np.dot(best, discounts[: len(best)]))
    return float(np.dot(gains, discounts[: len(gains)])) / most if most else 0.0


def main() -> None:
    """Prints a line for each collection."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    names = ["collection", "ours", "stemmed", "bm25s", "stemmed", "ours on its words"]
    names.append("p")
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|")
    for folder in parser.parse_args().folders:
        split = "test" if (folder / "qrels" / "test.tsv").exists() else "dev"
        path = str(folder)
        data = config.Data(path=path, runs="", test=split, on_error="skip")
        source = Files(data)
        documents = list(source.documents())
        texts = [f"{one.title} {one.text}" for one in documents]
        qrels = source.collection.qrels["test"]
        queries = [source.collection.queries[name] for name in qrels]
        cells, all_values = [], []
        for make in (
            lambda texts=texts: ours(texts, ""),
            lambda texts=texts: ours(texts, "english"),
            lambda texts=texts: theirs(texts, None),
            lambda texts=texts: theirs(texts, Stemmer.Stemmer("english")),
            lambda texts=texts: mixed(texts, Stemmer.Stemmer("english")),
        ):
            start = time.process_time()
            found = make()(queries)
            values = [
                ndcg(
                    {source.rows[d]: g for d, g in one.items() if d in source.rows},
                    list(one.values()),
                    rows,
                )
                for one, rows in zip(qrels.values(), found, strict=True)
            ]
            all_values.append(np.array(values))
            cells.append(f"{np.mean(values):.4f} ({time.process_time() - start:.1f} s)")
        p_value = randomisation_test(all_values[1], all_values[3])
        same = np.array_equal(all_values[4], all_values[3])
        cells.append(f"{p_value:.2f}" + (", equal on its words" if same else ""))
        print(f"| {folder.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
