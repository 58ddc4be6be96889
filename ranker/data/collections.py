"""Collections in the layouts that people have: found by their parts, not by a name.

    documents   corpus.jsonl, corpus.parquet, corpus/*, collection.tsv,
                collection.jsonl, msmarco-docs.tsv, msmarco_v2_passage/*, ...
    queries     queries.jsonl, queries.parquet, queries/*, queries.tsv,
                queries.SPLIT.tsv, passv2_SPLIT_queries.tsv (or docv2)
    judgements  qrels/SPLIT.tsv, qrels.SPLIT.tsv, passv2_SPLIT_qrels.tsv (or docv2),
                qrels/SPLIT-*.parquet,
                data/SPLIT-*.parquet
    candidates  runs/*.SPLIT.* (`data.runs`), top1000.SPLIT*, top_ranked/SPLIT*

So BEIR, MS MARCO (v1 and v2) and the Parquet folders of Hugging Face are one reader; a
part may be gzip. A folder or file without a corpus is read as lists (`list_files`), and
`irds:NAME` by ir_datasets.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ranker import config
from ranker.data import files, formats, list_files
from ranker.data.formats import Skipped
from ranker.data.records import Document
from ranker.errors import ConfigError, DataError, shown
from ranker.storage import open_path

Judgements = dict[str, dict[str, int]]  # query -> document -> grade
SPLITS = ("train", "dev", "test")
IRDS = "irds:"
_CORPORA = (
    "corpus.jsonl",
    "corpus.parquet",
    "corpus",
    "corpus.tsv",
    "corpus.csv",
    "collection.tsv",
    "collection.jsonl",
    "msmarco-docs.tsv",
    "msmarco_v2_passage",
    "msmarco_v2_doc",
    "docs.jsonl",
)
_QUERIES = ("queries.jsonl", "queries.parquet", "queries", "queries.tsv")
_JUDGEMENTS = ("qrels", "data", "default")  # folders, as on Hugging Face
_NAMED = 12  # files that a message lists


@dataclass
class Collection:
    """Queries, judgements and candidates; documents are read when they are asked for.

    Attributes:
      documents: reads each document once, in order, and numbers their ids.
      queries: texts by id.
      qrels: judgements of train, dev and test, as far as there are any.
      further: queries that other judgements hold out.
      runs: file of each split's candidates.
      lists: query -> document -> first-stage score, where the data is lists.
      teacher: query -> document -> a teacher's score, where the data has them.
      has_lists: candidates are those of `lists`, and nothing is searched.
      corpus: files of documents, in order, where there are such.
    """

    documents: Callable[[dict[str, int]], Iterator[Document]]
    queries: dict[str, str]
    qrels: dict[str, Judgements] = field(default_factory=dict)
    further: set[str] = field(default_factory=set)
    runs: dict[str, Any] = field(default_factory=dict)
    lists: dict[str, dict[str, float]] = field(default_factory=dict)
    teacher: dict[str, dict[str, float]] = field(default_factory=dict)
    has_lists: bool = False
    corpus: Sequence[Any] = ()


def file_names(settings: config.Data) -> dict[str, str]:
    """Split -> the name that its files have."""
    names = {split: split for split in SPLITS} | {"test": settings.test}
    if settings.test == "dev":
        del names["dev"]
    return names


def open_collection(settings: config.Data, skipped: Skipped) -> Collection:
    """The collection at `settings.path`.

    Judgements of dev and test, and of splits that are not used, must be sound whatever
    `settings.on_error` says: to leave one out would change every number.

    Raises:
      DataError: naming what was looked for and what is there, or file, line and field.
    """
    path = open_path(settings.path)
    pattern = any(c in path.name for c in "*?[")
    folder = not pattern and path.is_dir()
    if settings.format == "lists":
        return _open_lists(settings, path, skipped)
    if folder and (settings.format == "collection" or _corpus(path) is not None):
        return _Folder(settings, path, skipped).open()
    if pattern or path.is_file():
        return _open_lists(settings, path, skipped)
    if not folder:
        raise DataError(
            f"{path}: no such folder or file; --config.data.path wants a folder with "
            "corpus.jsonl, queries.jsonl and qrels/, one of the other layouts of "
            "docs/data.md, or files of queries with their documents"
        )
    parts = _find(path, *_QUERIES, "qrels") or any(path.glob("queries.*"))
    tables = [] if parts else [one for one in files.below(path) if files.kind_of(one)]
    if tables:
        if any(list_files.is_list_file(one) for one in tables[:4]):
            return _open_lists(settings, path, skipped)
    raise DataError(f"{path / 'corpus.jsonl'}: no such file; {_what_is_there(path)}")


def _what_is_there(folder: Any) -> str:
    for one in folder.iterdir():
        if os.path.islink(one) and not one.exists():
            return f"{one} is a link to {os.readlink(one)}, which is not there"
    inner = [one for one in folder.iterdir() if one.is_dir()]
    if several := sorted(one.name for one in inner if _corpus(one) is not None):
        return (
            f"{folder} has a collection in each of {', '.join(several[:_NAMED])}; name "
            f"one, such as --config.data.path={folder / several[0]}"
        )
    parts = sorted(
        one.name.removesuffix("-corpus")
        for one in inner
        if one.name.endswith("-corpus")
    )
    if parts:
        return (
            f"{folder} has parts of several collections, {', '.join(parts[:_NAMED])}; "
            f"make a folder of one, with links: corpus -> {parts[0]}-corpus, queries "
            f"-> {parts[0]}-queries, qrels -> {parts[0]}-qrels"
        )
    names = sorted(one.name for one in folder.iterdir())
    return (
        f"{folder} has {', '.join(names[:_NAMED]) or 'nothing'}; documents are looked "
        f"for in {', '.join(_CORPORA)}, or a file has queries with their documents"
    )


def _find(folder: Any, *names: str) -> Any | None:
    """The first of `names`, packed or not, that the folder has."""
    for name in names:
        for one in (folder / f"{name}{packed}" for packed in ("", *files.PACKED)):
            if one.exists():
                return one
    return None


def _corpus(folder: Any) -> Any | None:
    return _find(folder, *_CORPORA)


# --- a folder with corpus, queries and judgements ---


class _Folder:
    """One collection's folder, while it is read."""

    def __init__(self, settings: config.Data, folder: Any, skipped: Skipped):
        self.settings, self.folder, self.skipped = settings, folder, skipped
        self.lenient: dict[str, Any] = dict(on_error=settings.on_error, skipped=skipped)

    def open(self) -> Collection:
        corpus = _corpus(self.folder)
        if corpus is None:
            raise DataError(
                f"{self.folder / 'corpus.jsonl'}: no such file; "
                f"{_what_is_there(self.folder)}"
            )
        tables = files.expand(corpus, "a corpus")
        queries = self._queries()
        if not queries:
            raise DataError(f"{self.folder}: has no query")
        names = file_names(self.settings)
        found = {
            split: self._qrels(paths, queries, held_out=split != "train")
            for split, name in names.items()
            if (paths := self._qrels_files(name))
        }
        if "test" not in found:
            raise DataError(self._no_test())
        return Collection(
            documents=lambda seen: formats.read_documents(
                tables, seen=seen, **self.lenient
            ),
            corpus=tables,
            queries=queries,
            qrels=found,
            further=self._further(queries, set(names.values())),
            runs={
                split: run for split, name in names.items() if (run := self._run(name))
            },
        )

    def _queries(self) -> dict[str, str]:
        path = _find(self.folder, *_QUERIES)
        if path is not None:
            tables = files.expand(path, "a file of queries")
        else:
            hits = sorted(self.folder.glob("queries.*"), key=str)
            hits += sorted(self.folder.glob("topics.*"), key=str)
            hits += sorted(self.folder.glob("*v2_*_queries.tsv*"), key=str)
            tables = [one for one in hits if files.kind_of(one)]
        if not tables:
            raise DataError(
                f"{self.folder / 'queries.jsonl'}: no such file; "
                f"{_what_is_there(self.folder)}"
            )
        queries: dict[str, str] = {}
        for table in tables:
            # Several files may hold a query, as MS MARCO's dev and dev.small do.
            for one in formats.read_all_queries([table], seen={}, **self.lenient):
                if queries.setdefault(one.id, one.text) != one.text:
                    raise DataError(
                        f"{table}: the query {one.id!r} has two texts, "
                        f"{shown(queries[one.id])} in another file and "
                        f"{shown(one.text)}; give each query an id of its own"
                    )
        return queries

    def _qrels_files(self, name: str) -> list[Any]:
        """Files of one split's judgements."""
        folder = self.folder
        places = [(folder / "qrels", f"{name}.tsv"), (folder, f"qrels.{name}.tsv")]
        places += [(folder / "qrels", f"{name}.txt"), (folder, f"qrels.{name}.txt")]
        places += [(folder, f"{kind}v2_{name}_qrels.tsv") for kind in ("pass", "doc")]
        for place, file in places:
            if (path := _find(place, file)) is not None:
                return [path]
        for place in (*(folder / one for one in _JUDGEMENTS), folder):
            for pattern in (f"{name}-*.parquet", f"{name}.parquet", f"{name}.jsonl"):
                if (
                    hits := sorted(place.glob(pattern), key=str)
                    if place.is_dir()
                    else []
                ):
                    return hits
        return []

    def _qrels(
        self, paths: Iterable[Any], queries: Mapping[str, str], *, held_out: bool
    ) -> Judgements:
        how = self.lenient
        if held_out:
            how = {
                "skipped": self.skipped,
                "remedy": "correct it by hand: judgements that are held out are never "
                "skipped",
            }
        qrels: Judgements = {}
        for path in paths:
            for one in formats.read_judgements(path, queries=queries, **how):
                grades = qrels.setdefault(one.query_id, {})
                grades[one.document_id] = one.grade
        return qrels

    def _further(self, queries: Mapping[str, str], used: set[str]) -> set[str]:
        """Queries of further qrels files: held out too, though not in this run."""
        hits = []
        place = self.folder / "qrels"
        if place.is_dir():
            hits += sorted(place.glob("*.tsv*"), key=str)
        for pattern in ("qrels.*.tsv*", "*v2_*_qrels.tsv*"):
            hits += sorted(self.folder.glob(pattern), key=str)
        around = r"^qrels\.|^(pass|doc)v2_|(_qrels)?\.tsv$"
        further = [
            path
            for path in hits
            if re.sub(around, "", files.bare(path.name)) not in used
        ]
        return {
            query
            for path in further
            for query in self._qrels([path], queries, held_out=True)
        }

    def _no_test(self) -> str:
        place = self.folder / "qrels"
        if not place.is_dir():
            place = self.folder
        there = sorted(one.name for one in place.iterdir())
        return (
            f"{place}: no {self.settings.test}.tsv, which evaluation needs; it has "
            f"{', '.join(there) or 'nothing'}; name a split with --config.data.test"
        )

    def _run(self, split: str) -> Any | None:
        """The file of a split's candidates, or None."""
        try:
            pattern = self.settings.runs.format(split=split)
            if pattern.startswith("/"):
                raise ValueError("it is absolute")
            paths = sorted(self.folder.glob(pattern), key=str) if pattern else []
        except (LookupError, AttributeError, ValueError, NotImplementedError) as error:
            raise DataError(
                f"data.runs {self.settings.runs!r} is not a pattern of files below "
                f"{self.folder} ({error}); write it like runs/*.{{split}}.*"
            ) from error
        for known in (f"top1000.{split}*", f"top_ranked/{split}[-.]*"):
            if not paths and pattern:
                paths = sorted(self.folder.glob(known), key=str)
        if len(paths) > 1:
            raise DataError(
                f"{self.folder}: {len(paths)} run files match {pattern!r} for the "
                f"split {split!r}: {', '.join(path.name for path in paths)}; choose "
                "with --config.data.runs='runs/NAME.{split}.*'"
            )
        return paths[0] if paths else None


# --- files of queries with their documents ---


def _open_lists(settings: config.Data, path: Any, skipped: Skipped) -> Collection:
    """Lists by split: as the files are named, else by a hash of the query."""
    paths = files.expand(path, "a file of queries with their documents")
    named = {one: list_files.split_of(one.name) for one in paths}
    found: dict[str, dict[str, list_files.QueryList]] = {}
    for split in ("train", "dev", "test", ""):
        those = [one for one in paths if named[one] == split]
        # Held-out records are never skipped.
        lenient = settings.on_error if split in ("train", "") else "stop"
        lists = list_files.chain(those, on_error=lenient, skipped=skipped)
        found[split] = list_files.merge_lists(lists)
    if settings.test == "dev" and not found["test"]:
        found["test"], found["dev"] = found["dev"], {}
    found["train"] = list_files.merge_lists(
        itertools.chain(found["train"].values(), found.pop("").values())
    )
    _hold_out(found, settings.held_out)
    collection = Collection(
        documents=lambda seen: _documents_of(found, seen), queries={}, has_lists=True
    )
    # Of a query in several splits, the lists of test win: the others are leaks.
    for split in SPLITS:
        grades: Judgements = {}
        for one in found[split].values():
            collection.queries[one.id] = one.text
            collection.lists[one.id] = {
                name: one.first_stage.get(name, -float(rank))
                for rank, name in enumerate(one.documents)
            }
            if one.teacher:
                collection.teacher[one.id] = one.teacher
            if one.grades:
                grades[one.id] = one.grades
        collection.qrels[split] = grades
    if not collection.queries:
        raise ConfigError(f"{path}: holds no query with documents")
    return collection


def _hold_out(found: dict[str, dict[str, list_files.QueryList]], share: float) -> None:
    """Takes dev and test out of train where no file has them."""
    missing = [split for split in ("test", "dev") if not found[split]]
    labelled = [
        name for name, one in found["train"].items() if any(one.grades.values())
    ]
    dealt = list_files.deal(labelled, share if missing else 0.0)
    for name, split in dealt.items():
        if split in missing:
            found[split][name] = found["train"].pop(name)


def _documents_of(
    found: Mapping[str, Mapping[str, list_files.QueryList]], seen: dict[str, int]
) -> Iterator[Document]:
    for lists in found.values():
        for one in lists.values():
            for document in one.documents.values():
                if document.id not in seen:
                    seen[document.id] = len(seen)
                    yield document
