"""Where raw data comes from: files and a click log, or the synthetic collection.

`prepare` asks for documents, then for click examples, then for lists; nothing but ids,
queries and judgements stays in memory.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ranker import config
from ranker.data import click_engine, click_logs
from ranker.data.click_engine import ClickTable
from ranker.data.collections import IRDS, Collection, open_collection
from ranker.data.formats import Skipped
from ranker.data.irds import open_irds
from ranker.data.ranked import SPLITS, ListMaker, SplitCounts, choose_members
from ranker.data.records import Click, Document, RankedList
from ranker.data.shards import ShardedClicks
from ranker.data.words import fold
from ranker.data.world import SearchWorld, grade
from ranker.storage import open_path

NO_LOG = "the relevant documents of train, for want of a log"


class Source(Protocol):
    """Raw data; its parts are asked for in the order of these functions."""

    @property
    def counts(self) -> Mapping[str, SplitCounts]:
        """Of the lists that have been made."""
        ...

    def documents(self) -> Iterator[Document]:
        """Every document, in the order of its row."""
        ...

    def bind(self, corpus: Sequence[Document] | Any) -> None:
        """Tells the source where the documents have been written."""
        ...

    def click_rows(self) -> Iterator[Any]:
        """The click log, as batches of `click_logs.SCHEMA`."""
        ...

    def click_table(self, connection: Any) -> ClickTable:
        """Click examples, by the rules."""
        ...

    def queries(self, split: str) -> list[str]:
        """Texts of a split's queries."""
        ...

    def lists(self, split: str) -> Iterator[RankedList]:
        """Queries of a split with their candidates."""
        ...

    def report(self) -> dict[str, Any]:
        """Clicks' source, leaks, what was skipped, notes; when all else is done."""
        ...


def open_source(settings: config.Data) -> Source:
    """The source that the settings name."""
    return Files(settings) if settings.path else Made(settings)


def _open(settings: config.Data, skipped: Skipped) -> Collection:
    if settings.path.startswith(IRDS) or settings.format == "irds":
        return open_irds(settings.path.removeprefix(IRDS))
    return open_collection(settings, skipped)


class Files:
    """A collection's files, and a click log's."""

    def __init__(self, settings: config.Data):
        """Reads queries and judgements.

        Raises:
          DataError: naming the file, line and field that cannot be used.
        """
        self.settings = settings
        self.skipped = Skipped(settings.max_skipped)
        self.log: click_logs.ClickLog | None = None
        if settings.click_log:
            path = open_path(settings.click_log)
            self.log = click_logs.open_log(path, settings.click_columns)
        self.collection = _open(settings, self.skipped)
        self.members = choose_members(self.collection, settings)
        self.rows: dict[str, int] = {}
        self._own: set[str] = set()
        self._maker: ListMaker | None = None
        self._table: ClickTable | ShardedClicks | None = None

    @property
    def counts(self) -> Mapping[str, SplitCounts]:
        """See `Source`."""
        return self.maker.counts

    @property
    def maker(self) -> ListMaker:
        """What makes the lists, once the documents are there."""
        assert self._maker is not None, "documents come first"
        return self._maker

    def documents(self) -> Iterator[Document]:
        """See `Source`."""
        queries = self.collection.queries
        for one in self.collection.documents(self.rows):
            query = queries.get(one.id)
            if query is not None and _is_same(query, one):
                self._own.add(one.id)
            yield one

    def bind(self, corpus: Sequence[Document] | Any) -> None:
        """See `Source`."""
        self._corpus = corpus
        self._maker = ListMaker(
            self.settings,
            self.collection,
            self.members,
            corpus=corpus,
            rows=self.rows,
            own=self._own,
            skipped=self.skipped,
        )

    def click_rows(self) -> Iterator[Any]:
        """See `Source`."""
        if self.log is None:
            return click_logs.batches(self.maker.positives())
        return click_logs.read_log_batches(
            self.log, on_error=self.settings.on_error, skipped=self.skipped
        )

    def click_table(self, connection: Any) -> ClickTable:
        """See `Source`."""
        self._table = click_engine.run_rules(
            connection,
            self.click_rows(),
            self.settings.click_rules,
            held_out=self.members.held_out,
            documents=lambda: ((one.id, one.title, one.text) for one in self._corpus),
        )
        return self._table

    def take_clicks(self, table: ShardedClicks) -> ShardedClicks:
        """Takes what another engine has made of the log, and of its rows told."""
        assert self.log is not None
        for note in table.notes:
            for name, told in note.get("skipped", []):
                self.skipped.counts[name] = told["records"]
                self.skipped.rows[name] = told["of"]
                self.skipped.first[name] = told["first"]
            columns = note.get("ignored", [])
            self.log.ignored += [one for one in columns if one not in self.log.ignored]
        self._table = table
        return table

    def queries(self, split: str) -> list[str]:
        """See `Source`."""
        return [self.collection.queries[name] for name in self.members.names[split]]

    def lists(self, split: str) -> Iterator[RankedList]:
        """See `Source`."""
        return self.maker.make(split)

    def report(self) -> dict[str, Any]:
        """See `Source`."""
        table, log = self._table, self.log
        assert table is not None
        told: dict[str, Any] = {"source": self.settings.click_log or NO_LOG}
        told |= table.counts.report() | table.shown
        if log is not None and log.ignored:
            told["columns_not_used"] = log.ignored
        held = table.counts
        return {
            "clicks": told,
            "leaks": self.members.leaks
            | {"clicks": {"rows": held.held_out, "queries": held.held_out_queries}},
            "dropped": self.skipped.report(),
            "negatives": {
                "outside_the_window": self.maker.outside_window,
                "drawn_at_random": self.maker.drawn_at_random,
                **{
                    f"from {name}": count
                    for name, count in self.maker.from_sources.items()
                },
            },
            "teacher_scores": self._teacher_scores,
            "given_scores": self.maker.given.report,
            "notes": list(self._notes()),
        }

    @property
    def _teacher_scores(self) -> int:
        """Scores that came with the data."""
        return sum(map(len, self.collection.teacher.values()))

    def _notes(self) -> Iterator[str]:
        for name, count in self.skipped.repeated.items():
            yield f"{name}: {count:,} judgements came again with the same grade"
        if self._teacher_scores and not self.settings.given_scores:
            yield (
                f"{self._teacher_scores:,} teacher scores came with the lists; "
                "--config.given_scores=data distils from them in place of a teacher"
            )
        if not self.collection.qrels.get("train") and not self.settings.given_scores:
            yield (
                "no query of train is judged, so no teacher can be fine-tuned; give "
                "scores with --config.given_scores, or judgements of train"
            )
        both = set(self.members.names["dev"]) & set(self.members.names["test"])
        if both:
            yield f"{len(both):,} queries are in dev and in test; both keep them"


def _is_same(query: str, document: Document) -> bool:
    """Whether a document is the query itself."""
    text, title = fold(document.text), fold(document.title)
    return fold(query) in (text, title, f"{title} {text}")


class Made:
    """The synthetic collection."""

    def __init__(self, settings: config.Data):
        """Makes nothing yet."""
        self.settings, self.world = settings, SearchWorld(settings.world)
        self._counts = {split: SplitCounts() for split in SPLITS}
        self._splits = self.world.splits()
        self._table: ClickTable | None = None

    @property
    def counts(self) -> Mapping[str, SplitCounts]:
        """See `Source`."""
        return self._counts

    def documents(self) -> Iterator[Document]:
        """See `Source`."""
        return map(self.world.document, range(self.world.num_documents))

    def bind(self, corpus: Sequence[Document] | Any) -> None:
        """See `Source`."""

    def click_rows(self) -> Iterator[Any]:
        """See `Source`."""
        rows: Iterable[Click] = self.world.click_log()
        return click_logs.batches(rows)

    def click_table(self, connection: Any) -> ClickTable:
        """See `Source`."""
        rules = self.settings.click_rules
        self._table = click_engine.run_rules(connection, self.click_rows(), rules)
        return self._table

    def queries(self, split: str) -> list[str]:
        """See `Source`."""
        return [self.world.query(index).text for index in self._splits[split]]

    def lists(self, split: str) -> Iterator[RankedList]:
        """See `Source`."""
        counts = self.counts[split]
        counts.source = "the synthetic collection"
        for index in self._splits[split]:
            record = self._list(index, split != "unlabelled")
            grades = record.judged_grades.tolist()
            counts.queries += 1
            counts.candidates += len(record.documents)
            counts.judged += len(grades)
            for one in grades:
                counts.grades[one] = counts.grades.get(one, 0) + 1
            relevant = sum(one > 0 for one in grades)
            counts.relevant += relevant
            if relevant:  # all that is judged is a candidate
                counts.with_relevant += 1
                counts.recalls += 1
            yield record

    def _list(self, index: int, labelled: bool) -> RankedList:
        query, meaning = self.world.query(index), self.world.meaning(index)
        rows = self.world.candidates(index)
        grades = (
            [grade(meaning, self.world.content(row)) for row in rows]
            if labelled
            else []
        )
        return RankedList(
            query_id=query.id,
            query=query.text,
            documents=np.array(rows, np.int64),
            labels=np.array(grades or [0] * len(rows), np.float32),
            first_stage=-np.arange(len(rows), dtype=np.float32),
            judged_ids=tuple(f"d{row}" for row in rows) if labelled else (),
            judged_grades=np.array(grades, np.int32),
            judged=np.full(len(rows), labelled),
        )

    def report(self) -> dict[str, Any]:
        """See `Source`."""
        assert self._table is not None
        told = self._table.counts.report() | self._table.shown
        return {
            "clicks": {"source": "the synthetic collection", **told},
            "leaks": {},
            "dropped": {},
            "given_scores": {},
            "notes": [],
        }
