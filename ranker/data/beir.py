"""A folder in the BEIR layout as ranked lists: corpus, queries, qrels, runs, clicks."""

import hashlib
import pathlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ranker import config
from ranker.data import formats
from ranker.data.bm25 import Bm25
from ranker.data.clicks import clicks_to_examples
from ranker.data.records import Click, ClickExample, Document, Query, RankedList
from ranker.errors import DataError

Qrels = dict[str, dict[str, int]]
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Loaded:
    """What a folder holds."""

    documents: list[Document]
    lists: dict[str, list[RankedList]]  # train, unlabelled, dev, test
    clicks: dict[str, list[ClickExample]]  # train, dev
    report: dict[str, Any]


def _find(folder: pathlib.Path, name: str) -> pathlib.Path:
    """`name` or `name`.gz in the folder."""
    zipped = folder / f"{name}.gz"
    return zipped if zipped.is_file() else folder / name


def load_beir(settings: config.Data) -> Loaded:
    """Reads `settings.path`.

    Splits are `qrels/train.tsv`, `dev.tsv` and `test.tsv`, or what `settings.test`
    names in its place; test is needed, and where it is dev there is no dev. Candidates
    come from the run file of the split that `settings.runs` matches; a split without
    one is searched by BM25. In train, relevant documents that the first stage has
    missed are added to the list; in dev and test never.

    Queries without a judgement in any split are unlabelled, and so are the train
    queries beyond `settings.labelled_queries`, whose grades are then not used. Without
    a click log, the relevant documents of all train queries stand for clicks.

    Raises:
      DataError: naming the file, line and field that cannot be used.
    """
    folder = pathlib.Path(settings.path)
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; --config.data.path wants a folder with "
            "corpus.jsonl, queries.jsonl and qrels/"
        )
    skipped = formats.Skipped()
    lenient: dict[str, Any] = dict(on_error=settings.on_error, skipped=skipped)
    documents = list(formats.read_corpus(_find(folder, "corpus.jsonl"), **lenient))
    rows = {document.id: row for row, document in enumerate(documents)}
    queries = {
        query.id: query
        for query in formats.read_queries(_find(folder, "queries.jsonl"), **lenient)
    }
    if not documents or not queries:
        raise DataError(f"{folder}: the corpus or the queries are empty")
    qrels = {
        split: _read_qrels(path, queries, rows, lenient)
        for split, name in _file_names(settings).items()
        if (path := _find(folder / "qrels", f"{name}.tsv")).is_file()
    }
    if "test" not in qrels:
        there = sorted(path.name for path in (folder / "qrels").glob("*"))
        raise DataError(
            f"{folder / 'qrels'}: no {settings.test}.tsv, which evaluation needs; it "
            f"has {', '.join(there) or 'nothing'}; name a split with --config.data.test"
        )
    return _Maker(settings, folder, documents, rows, queries, qrels, lenient).load()


def _file_names(settings: config.Data) -> dict[str, str]:
    """Split -> the name that its files have."""
    names = {split: split for split in SPLITS} | {"test": settings.test}
    if settings.test == "dev":
        del names["dev"]
    return names


def _read_qrels(path, queries, rows, lenient) -> Qrels:
    qrels: Qrels = {}
    for one in formats.read_qrels(path, queries=queries, documents=rows, **lenient):
        qrels.setdefault(one.query_id, {})[one.document_id] = one.grade
    return qrels


@dataclass
class _Maker:
    settings: config.Data
    folder: pathlib.Path
    documents: list[Document]
    rows: dict[str, int]
    queries: dict[str, Query]
    qrels: dict[str, Qrels]
    lenient: dict[str, Any]

    def load(self) -> Loaded:
        settings = self.settings
        self.report: dict[str, Any] = {"documents": len(self.documents)}
        self.index: Bm25 | None = None
        lists: dict[str, list[RankedList]] = {}
        train = self.qrels.get("train", {})
        labelled = _some(train, settings.labelled_queries)
        judged = {query for qrels in self.qrels.values() for query in qrels}
        judged |= self._judged_elsewhere()
        members = {
            "train": [query for query in train if query in labelled],
            "unlabelled": [query for query in train if query not in labelled]
            + [query for query in self.queries if query not in judged],
            "dev": list(self.qrels.get("dev", {})),
            "test": list(self.qrels["test"]),
        }
        runs = {split: self._run(name) for split, name in _file_names(settings).items()}
        for split, names in members.items():
            if settings.max_queries:
                names = names[: settings.max_queries]
            source = "train" if split == "unlabelled" else split
            made = [self._list(name, split, runs.get(source)) for name in names]
            if split in ("train", "unlabelled"):
                kept = [one for one in made if len(one.documents)]
                if len(kept) < len(made):
                    key = f"queries, {split}, dropped: no candidate"
                    self.report[key] = len(made) - len(kept)
                made = kept
            lists[split] = made
            self.report[f"queries, {split}"] = len(made)
        examples, clicks = clicks_to_examples(self._clicks(train), settings.click_rules)
        self.report.update(clicks)
        self.report.update(self.lenient["skipped"].report())
        return Loaded(self.documents, lists, examples, self.report)

    def _judged_elsewhere(self) -> set[str]:
        """Queries of further qrels files: held out too, though not in this run."""
        used = set(_file_names(self.settings).values())
        further = [
            path
            for path in sorted((self.folder / "qrels").glob("*.tsv*"))
            if path.name.split(".tsv")[0] not in used
        ]
        return {
            query
            for path in further
            for query in _read_qrels(path, self.queries, self.rows, self.lenient)
        }

    def _run(self, split: str) -> dict[str, list[tuple[int, float]]] | None:
        """First-stage candidates of a split by query, best first; None: no run file."""
        try:
            pattern = self.settings.runs.format(split=split)
            paths = sorted(self.folder.glob(pattern)) if pattern else []
        except (LookupError, AttributeError, ValueError, NotImplementedError) as error:
            raise DataError(
                f"data.runs {self.settings.runs!r} is no pattern of files below "
                f"{self.folder} ({error}); write it like runs/*.{{split}}.*"
            ) from error
        if len(paths) > 1:
            raise DataError(
                f"{self.folder}: {len(paths)} run files match {pattern!r} for the "
                f"split {split!r}: {', '.join(path.name for path in paths)}; choose "
                "with --config.data.runs='runs/NAME.{split}.*'"
            )
        if not paths:
            return None
        found: dict[str, list[tuple[int, float]]] = {}
        candidates = formats.read_run(
            paths[0], queries=self.queries, documents=self.rows, **self.lenient
        )
        for one in candidates:
            row = self.rows[one.document_id]
            found.setdefault(one.query_id, []).append((row, one.score))
        # As trec_eval does: the score decides, not the rank column.
        for pairs in found.values():
            pairs.sort(key=lambda pair: -pair[1])
        self.report[f"candidates, {split}"] = f"from {paths[0].name}"
        return found

    def _search(self, query: Query) -> list[tuple[int, float]]:
        if self.index is None:
            texts = (f"{one.title} {one.text}" for one in self.documents)
            self.index = Bm25.build(texts)
            self.report["candidates, found by BM25 for queries"] = 0
        self.report["candidates, found by BM25 for queries"] += 1
        rows, scores = self.index.search(query.text, self.settings.candidates)
        return list(zip(rows.tolist(), scores.tolist(), strict=True))

    def _list(self, name: str, split: str, run) -> RankedList:
        query = self.queries[name]
        if run is None or (split == "unlabelled" and name not in run):
            pairs = self._search(query)
        else:
            pairs = run.get(name, [])[: self.settings.candidates]
        source = "train" if split == "unlabelled" else split
        judged = self.qrels.get(source, {}).get(name, {})
        if split == "unlabelled":
            judged = {}
        if split == "train":
            present = {row for row, _ in pairs}
            lowest = min((score for _, score in pairs), default=0.0)
            pairs += [
                (self.rows[document], lowest)
                for document, grade in judged.items()
                if grade > 0 and self.rows[document] not in present
            ]
        grades = {self.rows[document]: grade for document, grade in judged.items()}
        return RankedList(
            query_id=name,
            query=query.text,
            documents=np.array([row for row, _ in pairs], np.int64),
            labels=np.array(
                [max(0, grades.get(row, 0)) for row, _ in pairs], np.float32
            ),
            first_stage=np.array([score for _, score in pairs], np.float32),
            judged_ids=tuple(judged),
            judged_grades=np.array(list(judged.values()), np.int32),
        )

    def _clicks(self, train: Qrels) -> Iterable[Click]:
        if self.settings.click_log:
            path = pathlib.Path(self.settings.click_log)
            yield from formats.read_clicks(path, **self.lenient)
            return
        self.report["clicks"] = "no log; the relevant documents of train stand for them"
        for query, grades in train.items():
            for document, grade in grades.items():
                if grade > 0:
                    found = self.documents[self.rows[document]]
                    yield Click(
                        query=self.queries[query].text,
                        title=found.title,
                        summary=found.text,
                        document_id=document,
                    )


def _some(qrels: Qrels, count: int) -> set[str]:
    """`count` query ids, chosen by hash so that files in any order give the same."""
    names = sorted(qrels, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(names[:count] if count else names)
