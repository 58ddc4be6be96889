"""Ranked lists of a collection: splits that do not leak, and candidates.

A query is held out where dev, test or a split that is not used judges it: from train,
the unlabelled queries and the clicks, by its id and by its text, for a log always has
the judged queries under ids of its own.
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ranker import config
from ranker.data import formats
from ranker.data.bm25 import Bm25
from ranker.data.collections import Collection
from ranker.data.formats import Skipped
from ranker.data.records import Click, Document, RankedList
from ranker.data.search import search_all
from ranker.data.words import fold
from ranker.errors import DataError
from ranker.storage import open_path

ScoredRows = tuple[np.ndarray, np.ndarray]  # rows of the corpus and scores, best first
SPLITS = ("train", "unlabelled", "dev", "test")
GIVEN_WITH_DATA = "data"  # `given_scores` that the collection itself has
BM25 = "bm25"  # a source of negatives
_NAMED = 20  # ids that a report lists


@dataclass
class SplitCounts:
    """What the lists of a split hold."""

    queries: int = 0
    candidates: int = 0  # of all its queries
    with_relevant: int = 0  # queries that have a relevant document
    recalls: float = 0.0  # summed over these
    judged: int = 0  # judgements
    relevant: int = 0
    judged_without_text: int = 0  # judgements of documents that the corpus lacks
    grades: dict[int, int] = field(default_factory=dict)  # of judgements
    source: str = ""  # of the candidates
    dropped: dict[str, int] = field(default_factory=dict)  # queries, by reason

    def report(self) -> dict[str, Any]:
        """For report.json; `candidate_recall` is None where nothing is relevant."""
        recall = self.recalls / self.with_relevant if self.with_relevant else None
        return {
            "queries": self.queries,
            "candidates": self.candidates,
            "candidate_recall": recall,
            "judged": self.judged,
            "relevant": self.relevant,
            "judged_without_text": self.judged_without_text,
            "grades": dict(sorted(self.grades.items())),
            "source": self.source,
            "dropped": self.dropped,
        }


@dataclass(frozen=True)
class Members:
    """Which queries each split has, and what was taken out of it."""

    names: dict[str, list[str]]
    held_out: frozenset[str]  # folded texts of queries that are held out
    leaks: dict[str, dict[str, int]]  # split -> by_id, by_text


def choose_members(collection: Collection, settings: config.Data) -> Members:
    """The queries of each split; those that are held out leave the others."""
    queries, qrels = collection.queries, collection.qrels
    held = {
        *collection.further,
        *qrels.get("dev", {}),
        *qrels.get("test", {}),
    }
    texts = frozenset(fold(queries[name]) for name in held if name in queries)
    leaks: dict[str, dict[str, int]] = {}

    def clean(split: str, names: Iterable[str]) -> list[str]:
        found = leaks[split] = {"by_id": 0, "by_text": 0}
        kept = []
        for name in names:
            if name in held:
                found["by_id"] += 1
            elif fold(queries[name]) in texts:
                found["by_text"] += 1
            else:
                kept.append(name)
        return kept

    train = clean("train", qrels.get("train", {}))
    judged = {name for one in qrels.values() for name in one} | collection.further
    rest = (name for name in queries if name not in judged)
    unlabelled = clean("unlabelled", rest)
    labelled = some(train, settings.labelled_queries)
    names = {
        "train": [name for name in train if name in labelled],
        "unlabelled": [name for name in train if name not in labelled] + unlabelled,
        "dev": list(qrels.get("dev", {})),
        "test": list(qrels.get("test", {})),
    }
    if settings.max_queries:
        for split, members in names.items():
            kept = some(members, settings.max_queries)
            names[split] = [name for name in members if name in kept]
    return Members(names, texts, leaks)


def some(names: Iterable[str], count: int) -> set[str]:
    """`count` query ids, chosen by hash so that files in any order give the same."""
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(order[:count] if count else order)


class ListMaker:
    """Makes the lists of each split, and counts what they hold."""

    def __init__(
        self,
        settings: config.Data,
        collection: Collection,
        members: Members,
        *,
        corpus: Sequence[Document] | Any,
        rows: Mapping[str, int],
        own: set[str],
        skipped: Skipped,
    ):
        """Nothing is read yet.

        Args:
          settings: of the data.
          collection: that the queries are of.
          members: of each split.
          corpus: documents by row.
          rows: row of each document's id.
          own: queries that are documents themselves, with the same id and text.
          skipped: counts malformed lines of runs.
        """
        self.settings, self.collection, self.members = settings, collection, members
        self.corpus, self.rows, self.own, self.skipped = corpus, rows, own, skipped
        self.counts = {split: SplitCounts() for split in SPLITS}
        self.searched = 0
        self.outside_window = self.drawn_at_random = 0  # negatives of train
        self.from_sources: dict[str, int] = {}
        self._runs: dict[str, dict[str, ScoredRows] | None] = {}
        self._index: Bm25 | None = None
        self.given = read_given(settings, collection, members, rows)

    def make(self, split: str) -> Iterator[RankedList]:
        """The lists of a split, in order; `counts` is right when all have been made.

        Raises:
          DataError: when none of a held-out split's relevant documents is a candidate.
        """
        counts = self.counts[split]
        names = self.members.names[split]
        for name, found in zip(names, self._candidates(split, names), strict=True):
            record = self._list(name, split, found)
            self._count(counts, record, found)
            if len(record.documents) or split not in ("train", "unlabelled"):
                counts.queries += 1
                counts.candidates += len(record.documents)
                yield record
            else:
                reason = "no candidate"
                counts.dropped[reason] = counts.dropped.get(reason, 0) + 1
        # A sample of a few queries may miss all by chance; a whole split does not.
        whole = len(names) == len(self.collection.qrels.get(split, {}))
        held_out = split in ("dev", "test") and whole
        if held_out and counts.with_relevant and not counts.recalls:
            raise DataError(self._nothing_relevant(split))

    # --- candidates ---

    def _candidates(self, split: str, names: Sequence[str]) -> Iterator[ScoredRows]:
        """The first stage of each query."""
        source = "train" if split == "unlabelled" else split
        given = self.given.scores if split in ("train", "unlabelled") else None
        run = None if self.collection.has_lists else self._run(source)
        counts = self.counts[split]
        if given is not None:
            counts.source = f"given scores, {self.settings.given_scores}"
            for name in names:
                scores = given.get(name, {})
                if run is not None:
                    self._count_unscored(name, run.get(name), scores)
                yield self._of_dict(scores)
            return
        if self.collection.has_lists:
            counts.source = "the data's own lists"
            for name in names:
                yield self._of_dict(self.collection.lists.get(name, {}))
            return
        missing = [
            name
            for name in names
            if run is None or (split == "unlabelled" and name not in run)
        ]
        sources = [] if run is None else [self.collection.runs[source].name]
        counts.source = ", ".join(sources + ["BM25"] * bool(missing))
        found = iter(self._search(split, missing))
        looked_for = set(missing)
        nothing = (np.zeros(0, np.int64), np.zeros(0, np.float32))
        for name in names:
            scored = (
                next(found) if name in looked_for else (run or {}).get(name, nothing)
            )
            yield self._cut(name, scored)

    def _count_unscored(
        self, name: str, candidates: ScoredRows | None, scores: Mapping[str, float]
    ) -> None:
        """Adds the candidates of a run that have no score from outside."""
        if candidates is None:
            return
        rows, _ = self._cut(name, candidates)
        report = self.given.report["candidates_without_a_score"]
        for row in rows.tolist():
            document = self.corpus[row].id
            if document not in scores:
                report["count"] += 1
                if len(report["first"]) < _NAMED:
                    report["first"].append(f"{name} {document}")

    def _cut(self, name: str, scored: ScoredRows) -> ScoredRows:
        """The first candidates, without the query's own document."""
        rows, scores = scored
        if self._drops_own(name):
            kept = rows != self.rows[name]
            rows, scores = rows[kept], scores[kept]
        count = self.settings.candidates
        return rows[:count], scores[:count]

    def _drops_own(self, name: str) -> bool:
        how = self.settings.ignore_identical_ids
        if how == "always":
            return name in self.rows
        return how == "auto" and name in self.own

    def _of_dict(self, scores: Mapping[str, float]) -> ScoredRows:
        """Candidates by id, those with text, best first."""
        pairs = [
            (self.rows[one], score) for one, score in scores.items() if one in self.rows
        ]
        pairs.sort(key=lambda pair: -pair[1])
        rows = np.array([row for row, _ in pairs], np.int64)
        return rows, np.array([score for _, score in pairs], np.float32)

    def _run(self, split: str) -> dict[str, ScoredRows] | None:
        """First-stage candidates of a split by query; None: no run file."""
        if split not in self._runs:
            path = self.collection.runs.get(split)
            self._runs[split] = None if path is None else self._read_run(path)
        return self._runs[split]

    def _read_run(self, path: Any) -> dict[str, ScoredRows]:
        found: dict[str, list[tuple[int, float]]] = {}
        candidates = formats.read_candidates(
            path,
            queries=self.collection.queries,
            documents=self.rows,
            on_error=self.settings.on_error,
            skipped=self.skipped,
        )
        for one in candidates:
            row = self.rows[one.document_id]
            found.setdefault(one.query_id, []).append((row, one.score))
        result = {}
        for name in list(found):
            pairs = found.pop(name)
            # As trec_eval does: the score decides, not the rank column.
            pairs.sort(key=lambda pair: -pair[1])
            result[name] = (
                np.array([row for row, _ in pairs], np.int64),
                np.array([score for _, score in pairs], np.float32),
            )
        return result

    def _search(self, split: str, names: Sequence[str]) -> Iterable[ScoredRows]:
        if not names:
            return ()
        if self._index is None:
            texts = (f"{one.title} {one.text}" for one in self.corpus)
            self._index = Bm25.build(texts, language=self.settings.language)
        self.searched += len(names)
        queries = [self.collection.queries[name] for name in names]
        # One more, where the query's own document is left out.
        return search_all(self._index, queries, self.settings.candidates + 1, split)

    # --- lists ---

    def _list(self, name: str, split: str, found: ScoredRows) -> RankedList:
        rows, scores = found
        judged = self._judged(name, split)
        grades = {
            self.rows[document]: grade
            for document, grade in judged.items()
            if document in self.rows
        }
        if split == "train" and self.given.scores is None:
            rows, scores = self._in_window(rows, scores, grades)
            rows, scores = self._with_sources(name, rows, scores, grades)
            missed = [row for row, grade in grades.items() if grade > 0]
            missed = [row for row in missed if row not in rows]
            drawn = self._drawn(name, {*rows.tolist(), *grades})
            more = np.array(missed + drawn, np.int64)
            lowest = scores.min() if len(scores) else 0.0
            rows = np.concatenate([rows, more])
            scores = np.concatenate([scores, np.full(len(more), lowest, np.float32)])
        listed = rows.tolist()
        return RankedList(
            query_id=name,
            query=self.collection.queries[name],
            documents=rows,
            labels=np.array([max(0, grades.get(row, 0)) for row in listed], np.float32),
            first_stage=scores,
            judged_ids=tuple(judged),
            judged_grades=np.array(list(judged.values()), np.int32),
            judged=np.array([row in grades for row in listed], bool),
            teacher=self._teacher(name, split, rows),
        )

    def _in_window(
        self, rows: np.ndarray, scores: np.ndarray, grades: Mapping[int, int]
    ) -> ScoredRows:
        """Candidates without those that nobody judged outside the ranks asked for."""
        window, ranks = self.settings.negatives, np.arange(len(rows))
        inside = (ranks >= window.first) & (ranks < (window.last or len(rows)))
        kept = inside | np.array([row in grades for row in rows.tolist()], bool)
        self.outside_window += int(len(rows) - kept.sum())
        return rows[kept], scores[kept]

    def _with_sources(
        self,
        name: str,
        rows: np.ndarray,
        scores: np.ndarray,
        grades: Mapping[int, int],
    ) -> ScoredRows:
        """Candidates and, after them, those of further sources."""
        settings = self.settings.negatives
        for source, found in self._further.items():
            if name not in found:
                continue
            more, _ = self._in_window(*self._cut(name, found[name]), grades)
            more = more[~np.isin(more, rows)][: settings.each or None]
            self.from_sources[source] += len(more)
            lowest = scores.min() if len(scores) else 0.0
            rows = np.concatenate([rows, more])
            scores = np.concatenate([scores, np.full(len(more), lowest, np.float32)])
        return rows, scores

    @functools.cached_property
    def _further(self) -> dict[str, Mapping[str, ScoredRows]]:
        """What `data.negatives.sources` hold, by source."""
        result: dict[str, Mapping[str, ScoredRows]] = {}
        names = self.members.names["train"]
        folder = open_path(self.settings.path)
        for pattern in self.settings.negatives.sources:
            if pattern == BM25:
                result[pattern] = dict(
                    zip(names, self._search("train", names), strict=True)
                )
                continue
            paths = [] if pattern.startswith("/") else sorted(folder.glob(pattern))
            if not paths:
                near = (folder / pattern).parent
                there = sorted(one.name for one in near.glob("*"))
                raise DataError(
                    f"{folder}: data.negatives.sources has {pattern!r}, which no file "
                    f"matches; {near} has "
                    f"{', '.join(there[:_NAMED]) or 'nothing'}; it takes patterns of "
                    f"run files below data.path, and {BM25}"
                )
            result |= {path.name: self._read_run(path) for path in paths}
        self.from_sources = dict.fromkeys(result, 0)
        return result

    def _drawn(self, name: str, known: set[int]) -> list[int]:
        """Random documents for a query, the same ones every time."""
        count = min(self.settings.negatives.random, len(self.rows) - len(known))
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        generator = np.random.default_rng(seed)
        drawn: dict[int, None] = {}
        while len(drawn) < count:
            row = int(generator.integers(len(self.rows)))
            if row not in known:
                drawn[row] = None
        self.drawn_at_random += len(drawn)
        return list(drawn)

    def _judged(self, name: str, split: str) -> dict[str, int]:
        """Grades that may be used of a query; none where it is unlabelled."""
        if split == "unlabelled":
            return {}
        return self.collection.qrels.get(split, {}).get(name, {})

    def _teacher(self, name: str, split: str, rows: np.ndarray) -> np.ndarray:
        if self.given.scores is None or split not in ("train", "unlabelled"):
            return np.zeros(0, np.float32)
        found = self.given.scores.get(name, {})
        return np.array([found[self.corpus[int(row)].id] for row in rows], np.float32)

    def _count(
        self, counts: SplitCounts, record: RankedList, found: ScoredRows
    ) -> None:
        grades = record.judged_grades.tolist()
        counts.judged += len(grades)
        for grade in grades:
            counts.grades[grade] = counts.grades.get(grade, 0) + 1
        counts.judged_without_text += sum(
            name not in self.rows for name in record.judged_ids
        )
        relevant = {
            name
            for name, grade in zip(record.judged_ids, grades, strict=True)
            if grade > 0
        }
        counts.relevant += len(relevant)
        if relevant:
            present = {self.rows[name] for name in relevant if name in self.rows}
            hits = len(present & set(found[0].tolist()))
            counts.with_relevant += 1
            counts.recalls += hits / len(relevant)

    def _nothing_relevant(self, split: str) -> str:
        counts = self.counts[split]
        if counts.source.endswith("BM25"):
            cause = (
                "BM25 finds none: is the corpus in another language than the queries?"
            )
        elif not counts.candidates:
            cause = "the file names no candidate of its queries"
        else:
            cause = "are its ids those of another corpus?"
        where = self.settings.path
        if counts.judged_without_text == counts.judged:
            cause = "none of the judged documents is in the corpus: are the ids right?"
        return (
            f"{where}: the candidates of {split} ({counts.source}) hold none of its "
            f"{counts.relevant} relevant documents, so nothing could be ranked: {cause}"
        )

    # --- clicks ---

    def positives(self) -> Iterator[Click]:
        """The relevant documents of all train queries, in place of a click log."""
        train = self.collection.qrels.get("train", {})
        names = self.members.names
        for name in [*names["train"], *names["unlabelled"]]:
            for document, grade in train.get(name, {}).items():
                if grade > 0 and document in self.rows:
                    found = self.corpus[self.rows[document]]
                    yield Click(
                        query=self.collection.queries[name],
                        title=found.title,
                        summary=found.text,
                        document_id=document,
                    )


# --- teacher scores from outside ---


@dataclass(frozen=True)
class GivenScores:
    """Scores of a teacher from outside, and what is wrong with them."""

    scores: dict[str, dict[str, float]] | None  # query -> document; None: not asked for
    report: dict[str, Any]


def read_given(
    settings: config.Data,
    collection: Collection,
    members: Members,
    rows: Mapping[str, int],
) -> GivenScores:
    """The scores that `settings.given_scores` names.

    Raises:
      DataError: for a file that holds none, or none of the queries that may be used.
    """
    if not settings.given_scores:
        return GivenScores(None, {})
    if settings.given_scores == GIVEN_WITH_DATA:
        found, report = collection.teacher, {}
    else:
        found, report = formats.read_given_scores(
            settings.given_scores, on_error=settings.on_error
        )
    allowed = {*members.names["train"], *members.names["unlabelled"]}
    usable = {
        name: {one: score for one, score in scores.items() if one in rows}
        for name, scores in found.items()
        if name in allowed
    }
    lost = [
        f"{name} {one}"
        for name, scores in found.items()
        if name in allowed
        for one in scores
        if one not in rows
    ]
    unused = [name for name in found if name not in allowed]
    without = [name for name in allowed if not usable.get(name)]
    if not any(usable.values()):
        raise DataError(
            f"{settings.given_scores}: scores no document of a train or unlabelled "
            f"query of {settings.path}; it scores the queries "
            f"{', '.join(list(found)[:5]) or '(none)'}; held-out queries are not "
            "distilled from"
        )
    report |= {
        "teacher_scores": sum(map(len, usable.values())),
        "queries_without_a_score": _some_ids(sorted(without)),
        "documents_not_in_the_corpus": _some_ids(lost),
        "queries_not_used": _some_ids(unused),
        "candidates_without_a_score": _some_ids(_unscored(collection, usable)),
    }
    return GivenScores(usable, report)


def _unscored(
    collection: Collection, usable: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Pairs of the data's own lists that have no score."""
    return [
        f"{name} {one}"
        for name, scores in usable.items()
        for one in collection.lists.get(name, {})
        if one not in scores
    ]


def _some_ids(names: Sequence[str]) -> dict[str, Any]:
    return {"count": len(names), "first": list(names[:_NAMED])}
