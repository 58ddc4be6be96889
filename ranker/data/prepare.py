"""The prepare stage: raw data to records and tokenizers, once, in WORKDIR/prepare."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ranker import config, manifests, processes, storage
from ranker.data import click_engine, datasets, files, summary, text
from ranker.data.click_engine import ClickTable
from ranker.data.clicks import Digest
from ranker.data.collections import IRDS
from ranker.data.ranked import GIVEN_WITH_DATA, SPLITS
from ranker.data.records import ClickExample, Document, RankedList
from ranker.data.shards import ShardedClicks, doubt, doubtful_from
from ranker.data.sources import Source, open_source
from ranker.data.text import Tokenizer
from ranker.errors import DataError

_compute: Any = pyarrow.compute  # makes its functions while it is imported
NAME = manifests.PREPARE
ROLES: tuple[config.Role, ...] = ("teacher", "student")
_TOKENIZER_TEXTS = 200_000  # texts that a tokenizer is trained on, at most
_MEASURED = 200  # queries of a split whose candidates are measured
_MEASURED_DEPTH = 10  # candidates of each
_CHECKED = 4096  # queries whose length is looked at together
_SPARE = 8  # tokens that a template may add to a query that is not empty
_WORK = ".work"  # folder of the click engine, while it works


Clicks = ClickTable | ShardedClicks
# Applies the click rules to a source; the folder is for what it needs meanwhile.
Engine = Callable[[Source, config.Text, pathlib.Path], ShardedClicks]


@dataclass(frozen=True)
class Prepared:
    """What the prepare stage has made."""

    folder: pathlib.Path
    manifest: manifests.Manifest
    text: config.Text

    @property
    def facts(self) -> manifests.PrepareFacts:
        """What was found out of the data."""
        return manifests.PrepareFacts.of(self.manifest.facts)

    def inputs(self, *pieces: str) -> dict[str, str]:
        """Digests of the pieces that a stage reads, for its manifest.

        Args:
          pieces: "corpus", "lists/SPLIT", "clicks/SPLIT", or a role, for its tokenizer
            and template.
        """
        digests = self.facts.pieces
        # A split that the data does not have is one without records.
        return {f"{NAME}/{one}": digests.get(one, "empty") for one in pieces}

    def corpus(self) -> datasets.Records[Document]:
        """Documents by row."""
        return datasets.load_corpus(self.folder / "corpus")

    def lists(self, split: str) -> datasets.Records[RankedList]:
        """Queries of a split with their candidates."""
        return datasets.load_lists(self.folder / "lists", split)

    def clicks(self, split: str) -> datasets.Records[ClickExample]:
        """Continued pre-training examples of a split."""
        return datasets.load_clicks(self.folder / "clicks", split)

    def tokenizer_folder(self, role: config.Role) -> pathlib.Path:
        """Tokenizer folder of the teacher or the student, in the workdir."""
        return self.folder / "tokenizers" / role

    def tokenizer(self, role: config.Role) -> Tokenizer:
        """The tokenizer of the teacher or the student, with its template."""
        return Tokenizer(self.tokenizer_folder(role), self.text.of(role, "template"))


def _settings(data: config.Data, settings: config.Text) -> dict[str, Any]:
    """The fields that what is prepared depends on, and what the files looked like."""
    fields = config.to_dict(data)
    tokens = config.to_dict(settings)
    for name in ("teacher_passages", "student_passages"):
        del tokens[name]  # what is prepared is whole
    del tokens["passage_overlap"], tokens["passage_score"]
    if data.on_error == "stop":
        # A length then decides whether there is a result, not which.
        del tokens["teacher_length"], tokens["student_length"]
    if data.path:
        fields.pop("world")
        fields["files"] = list(_fingerprints(data))
    else:
        fields = {"world": fields["world"], "click_rules": fields["click_rules"]}
    return {"data": fields, "text": tokens}


def _fingerprints(data: config.Data) -> Iterator[list[Any]]:
    """Name, size and time of every file that could be read."""
    given = data.given_scores if data.given_scores != GIVEN_WITH_DATA else ""
    path = "" if data.path.startswith(IRDS) else data.path
    for name in (path, data.click_log, given):
        if name:
            yield from files.fingerprints(storage.open_path(name))


def plan(data: config.Data, settings: config.Text) -> manifests.Manifest:
    """The stage's manifest: what the prepared data depend on."""
    return manifests.Manifest(kind=NAME, settings=_settings(data, settings), inputs={})


def prepare(
    data: config.Data,
    settings: config.Text,
    workdir: pathlib.Path,
    *,
    replace: bool = False,
    engine: Engine | None = None,
) -> Prepared:
    """Prepares the data of a workdir, or finds that it is prepared.

    Args:
      data: where the raw data is.
      settings: how text is read.
      workdir: whose folder "prepare" is written.
      replace: what was prepared of other data.
      engine: applies the click rules in place of DuckDB; the result is the same.

    Raises:
      DataError: at a malformed record, naming file, line and field.
      StageError: when the workdir holds other data.
    """
    folder, manifest = workdir / NAME, plan(data, settings)
    with manifests.claim(folder, manifest, replace=replace, wait=True) as todo:
        if todo:
            made = processes.first(
                lambda: _prepare(data, settings, folder, manifest, engine)
            )
            return Prepared(folder, made, settings)
        found = manifests.load_manifest(folder)
        assert found is not None
        return Prepared(folder, found, settings)


def remember(prepared: Prepared, data: config.Data) -> None:
    """Notes the settings of a whole run, for stages that are run alone afterwards.

    They may differ from those that the data was prepared with in what a result does not
    depend on, such as the length of a row.
    """
    told = _config(data, prepared.text)
    if prepared.facts.config != told:
        facts = dataclasses.replace(prepared.facts, config=told)
        prepared.manifest.finish(prepared.folder, facts)


def _config(data: config.Data, settings: config.Text) -> dict[str, Any]:
    """What a stage that is run alone in this workdir begins from, as JSON has it."""
    fields = {"data": config.to_dict(data), "text": config.to_dict(settings)}
    return json.loads(json.dumps(fields))


def predict(
    found: manifests.Manifest, manifest: manifests.Manifest
) -> manifests.Manifest:
    """What is known of the data before it is prepared again, for a dry run.

    Args:
      found: of the data as it is prepared.
      manifest: of the data as it is to be prepared.
    """
    facts = manifests.PrepareFacts.of(found.facts)
    pieces = dict(facts.pieces)
    for change in manifests.changes(found, manifest):
        role = next((one for one in ROLES if change.startswith(f"text.{one}_")), None)
        for piece in [role] if role else pieces:
            pieces[piece] = "not known before it is prepared"
    facts = dataclasses.replace(facts, pieces=pieces)
    return dataclasses.replace(manifest, facts=facts.to_dict(), done=True)


def _prepare(
    data: config.Data,
    settings: config.Text,
    folder: pathlib.Path,
    manifest: manifests.Manifest,
    engine: Engine | None,
) -> manifests.Manifest:
    """Writes all of the stage's folder, in one process."""
    for stale in ("corpus", "lists", "clicks", "tokenizers", _WORK):
        shutil.rmtree(folder / stale, ignore_errors=True)
    source = open_source(data)
    manifest.save(folder)
    prepared = Prepared(folder, manifest, settings)
    try:
        with contextlib.ExitStack() as stack:
            if engine is None:
                place = click_engine.open_engine(folder / _WORK)
                connection = stack.enter_context(place)
                make = functools.partial(source.click_table, connection)
            else:
                make = functools.partial(engine, source, settings, folder / _WORK)
            facts = _write(data, prepared, source, make)
    finally:
        shutil.rmtree(folder / _WORK, ignore_errors=True)
    for line in summary.report_lines(facts.report):
        print(f"[{NAME}] {line}", flush=True)
    return manifest.finish(folder, facts, files=manifests.outputs(folder))


def _write(
    data: config.Data,
    prepared: Prepared,
    source: Source,
    make_table: Callable[[], Clicks],
) -> manifests.PrepareFacts:
    """Writes all pieces and the report; returns the facts of the manifest."""
    folder = prepared.folder
    content = _Content()
    datasets.write_corpus(folder / "corpus", content.watch(source.documents()))
    corpus = prepared.corpus()
    if not len(corpus):
        raise DataError(f"{data.path}: has no document")
    source.bind(corpus)
    table = make_table()
    pieces = {"corpus": content.hexdigest()}
    roles = {}
    for role in ROLES:
        _make_tokenizer(prepared, role, source, table)
        tokenizer = prepared.tokenizer(role)
        roles[role] = manifests.RoleFacts(
            tokenizer=tokenizer.digest,
            template=tokenizer.template_digest,
            vocab_size=tokenizer.vocab_size,
        )
        pieces[role] = storage.digest([tokenizer.digest, tokenizer.template_digest])
    room = Room(prepared, data.on_error)
    lists = {split: _Content() for split in SPLITS}
    datasets.write_lists(
        folder / "lists",
        {
            split: content.watch(room.lists(split, source.lists(split)))
            for split, content in lists.items()
        },
    )
    pieces |= {f"lists/{split}": one.hexdigest() for split, one in lists.items()}
    a_query = table.clicks_a_query()
    pieces |= _write_clicks(folder / "clicks", table, room)
    report = _report(prepared, source, room, a_query)
    storage.write_json(folder / summary.FILE, report)
    return manifests.PrepareFacts(
        config=_config(data, prepared.text),
        teacher=roles["teacher"].to_dict(),
        student=roles["student"].to_dict(),
        report=report,
        pieces=pieces,
    )


def _write_clicks(folder: pathlib.Path, table: Clicks, room: "Room") -> dict[str, str]:
    """Writes the click examples, or takes files of them over; returns digests."""
    splits = ("train", "dev")
    if isinstance(table, ShardedClicks) and room.has_room(table):
        datasets.take_clicks(folder, {split: table.files(split) for split in splits})
        return {f"clicks/{split}": table.digest(split) for split in splits}
    digests = {split: Digest() for split in splits}
    datasets.write_clicks(
        folder,
        {
            split: _add_all(digest, room.clicks(split, table.batches(split)))
            for split, digest in digests.items()
        },
    )
    return {f"clicks/{split}": one.hexdigest() for split, one in digests.items()}


def _report(
    prepared: Prepared, source: Source, room: "Room", a_query: dict[str, int]
) -> dict[str, Any]:
    report = {
        "documents": len(prepared.corpus()),
        "splits": {split: one.report() for split, one in source.counts.items()},
        **source.report(),
    }
    for split, reasons in room.dropped.items():
        if split in report["splits"]:
            report["splits"][split]["dropped"] |= reasons
            report["splits"][split]["queries"] = room.kept[split]
        else:  # "clicks/SPLIT"
            told = report["clicks"]
            for reason, count in reasons.items():
                told["dropped"][reason] = told["dropped"].get(reason, 0) + count
            split = split.rpartition("/")[2]
            kept = told["examples"][split] - sum(reasons.values())
            told["examples"] = {**told["examples"], split: kept}
    report["clicks"]["a_query"] = a_query
    report["lengths"] = {role: _lengths(prepared, role) for role in ROLES}
    return report


def _lengths(prepared: Prepared, role: config.Role) -> dict[str, Any]:
    """Tokens of candidates of some queries, and the share that a model will cut."""
    tokenizer, length = prepared.tokenizer(role), prepared.text.of(role, "length")
    corpus = prepared.corpus()
    queries: list[int] = []
    pairs: list[int] = []
    for split in SPLITS:
        lists = prepared.lists(split)
        for index in range(0, len(lists), max(1, len(lists) // _MEASURED)):
            one = lists[index]
            [query] = tokenizer.queries([one.query])
            queries.append(len(query))
            documents = [corpus[int(row)] for row in one.documents[:_MEASURED_DEPTH]]
            around = len(query) + len(tokenizer.tail)
            pairs += [around + len(one) for one in tokenizer.documents(documents)]
    return {
        "length": length,
        "cut": float(np.mean(np.array(pairs) > length)) if pairs else 0.0,
        "queries": summary.histogram(queries),
        "candidates": summary.histogram(pairs),
    }


T = TypeVar("T")


class _Content:
    """Digest of records, in their order: later stages depend on it and on no file."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def watch(self, records: Iterable[T]) -> Iterator[T]:
        """The same records; each is taken in as it passes."""
        names: tuple[str, ...] = ()
        for record in records:
            names = names or tuple(one.name for one in dataclasses.fields(record))  # type: ignore[arg-type]
            for name in names:
                value = getattr(record, name)
                array = isinstance(value, np.ndarray)
                self._sha.update(value.tobytes() if array else repr(value).encode())
                self._sha.update(b"\0")
            yield record

    def hexdigest(self) -> str:
        """16 hexadecimal digits."""
        return self._sha.hexdigest()[:16]


def _add_all(
    digest: Digest, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        digest.add_batch(batch)
        yield batch


def _make_tokenizer(
    prepared: Prepared, role: config.Role, source: Source, table: Clicks
) -> None:
    """Copies the tokenizer that the settings name, or trains one on the corpus."""
    settings, target = prepared.text, prepared.tokenizer_folder(role)
    template = settings.of(role, "template")
    if given := settings.of(role, "tokenizer"):
        Tokenizer(given, template).loaded.save_pretrained(str(target))
        return
    target.mkdir(parents=True, exist_ok=True)
    size = settings.of(role, "vocab_size")
    train = text.train_wordpiece if template == "pair" else text.train_bpe
    train(_texts(prepared, template, source, table), size, target)


def _texts(
    prepared: Prepared, template: config.Template, source: Source, table: Clicks
) -> Iterator[str]:
    """Texts to train a tokenizer on: documents and queries, evenly over each."""
    corpus = prepared.corpus()
    for row in range(0, len(corpus), max(1, len(corpus) // _TOKENIZER_TEXTS)):
        yield text.document_text(corpus[row], template)
    every = max(1, table.count("train") // _TOKENIZER_TEXTS)
    for one in table.examples("train", every=every):
        yield one.query
    for split in ("train", "unlabelled"):
        queries = source.queries(split)
        yield from queries[:: max(1, len(queries) // _TOKENIZER_TEXTS)]


class Room:
    """Stops at, or drops, queries that leave no room for a document in a row.

    A query is never cut: half a question is another question. Of dev and test none is
    dropped: such a query keeps its judgements and loses its candidates, so it counts 0.
    """

    def __init__(self, prepared: Prepared, on_error: str):
        """Reads queries as the tokenizers of `prepared` do."""
        self._on_error = on_error
        self._roles = [
            (
                prepared.tokenizer(role),
                f"{role}_length",
                prepared.text.of(role, "length"),
            )
            for role in ROLES
        ]
        self._lengths = [length for _, _, length in self._roles]
        self.dropped: dict[str, dict[str, int]] = {}
        self.kept: dict[str, int] = {}

    def lists(self, split: str, records: Iterable[RankedList]) -> Iterator[RankedList]:
        """The lists that can be read."""
        self.kept[split] = 0
        for record, reason in self._check(split, records):
            if reason and split in ("dev", "test"):
                none = np.zeros(0, np.int64)
                record = dataclasses.replace(
                    record,
                    documents=none,
                    labels=none.astype(np.float32),
                    first_stage=none.astype(np.float32),
                )
            elif reason:
                continue
            self.kept[split] += 1
            yield record

    def clicks(
        self, split: str, batches: Iterable[pa.RecordBatch]
    ) -> Iterator[pa.RecordBatch]:
        """The click examples that can be read."""
        around = max(_around(tokenizer) for tokenizer, _, _ in self._roles)
        least = max(0, min(self._lengths) - around)
        for batch in batches:
            queries = batch["query"]
            short = _compute.less(_compute.binary_length(queries), least)
            # What is not ASCII is measured by `doubt`.
            short = _compute.and_(short, _compute.string_is_ascii(queries))
            places = np.flatnonzero(~short.to_numpy(zero_copy_only=False))
            if len(places):
                asked = queries.take(pa.array(places)).to_pylist()
                reasons = self._reasons(f"clicks/{split}", asked)
                bad = places[[bool(reason) for reason in reasons]]
                keep = np.ones(len(batch), bool)
                keep[bad] = False
                batch = batch.filter(pa.array(keep)) if len(bad) else batch
            yield batch

    def has_room(self, table: ShardedClicks) -> bool:
        """Whether no click example can be too long, as far as is known unread."""
        least = doubtful_from(self._lengths)
        for tokenizer, _, length in self._roles:
            if length - _around(tokenizer) < least:
                return False
        for split in ("train", "dev"):
            queries = table.doubtful(split)
            if queries is None or any(
                _too_long(tokenizer, length, queries)
                for tokenizer, _, length in self._roles
            ):
                return False
        return True

    def _check(
        self, name: str, records: Iterable[RankedList]
    ) -> Iterator[tuple[RankedList, str]]:
        """Each record, and why it cannot be read; "" where it can."""
        records = iter(records)
        while some := list(itertools.islice(records, _CHECKED)):
            reasons = self._reasons(name, [one.query for one in some])
            yield from zip(some, reasons, strict=True)

    def _reasons(self, name: str, queries: Sequence[str]) -> list[str]:
        """Why each query cannot be read, counted; "" where it can."""
        reasons = [""] * len(queries)
        for tokenizer, field, length in self._roles:
            for place in _too_long(tokenizer, length, queries):
                self._stop(name, queries[place], field, length)
                reasons[place] = reasons[place] or f"too long for text.{field}"
        for reason in filter(None, reasons):
            told = self.dropped.setdefault(name, {})
            told[reason] = told.get(reason, 0) + 1
        return reasons

    def _stop(self, name: str, query: str, field: str, length: int) -> None:
        if self._on_error == "stop":
            raise DataError(
                f"a query of {name} has no room for a document in text.{field} "
                f"{length} tokens: {query[:80]!r}; raise --config.text.{field}, or "
                "drop such queries with --config.data.on_error=skip"
            )


def _around(tokenizer: Tokenizer) -> int:
    """Tokens of a row that are not the query's, or may not be."""
    return len(tokenizer.queries([""])[0]) + _SPARE + len(tokenizer.tail)


def _too_long(tokenizer: Tokenizer, length: int, queries: Sequence[str]) -> list[int]:
    """Places of queries that fill a row alone."""
    room = length - len(tokenizer.tail)
    around = _around(tokenizer)
    doubtful = [
        place for place, one in enumerate(queries) if doubt(one) + around >= length
    ]
    found = tokenizer.queries([queries[place] for place in doubtful])
    return [
        place
        for place, tokens in zip(doubtful, found, strict=True)
        if len(tokens) >= room
    ]
