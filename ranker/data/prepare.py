"""The prepare stage: raw data to records and tokenizers, once, in WORKDIR/prepare."""

import pathlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ranker import config, manifest
from ranker.data import datasets, text
from ranker.data.beir import Loaded, load_beir
from ranker.data.clicks import clicks_to_examples
from ranker.data.records import ClickExample, DataError, Document, RankedList
from ranker.data.text import Kind, Tokenizer
from ranker.data.world import SearchWorld, grade

NAME = "prepare"
_TOKENIZER_TEXTS = 200_000  # texts that a tokenizer is trained on, at most


@dataclass(frozen=True)
class Prepared:
    """What the prepare stage has made."""

    folder: pathlib.Path
    account: manifest.Manifest
    text: config.Text

    def corpus(self) -> datasets.Records[Document]:
        """Documents by row."""
        return datasets.load_corpus(self.folder / "corpus")

    def lists(self, split: str) -> datasets.Records[RankedList]:
        """Queries of a split with their candidates."""
        return datasets.load_lists(self.folder / "lists", split)

    def clicks(self, split: str) -> datasets.Records[ClickExample]:
        """Continued pre-training examples of a split."""
        return datasets.load_clicks(self.folder / "clicks", split)

    def tokenizer_folder(self, kind: Kind) -> pathlib.Path:
        """Tokenizer folder of the teacher (decoder) or the student (encoder)."""
        given = {
            "decoder": self.text.teacher_tokenizer,
            "encoder": self.text.student_tokenizer,
        }[kind]
        return pathlib.Path(given) if given else self.folder / "tokenizers" / kind

    def tokenizer(self, kind: Kind) -> Tokenizer:
        """The tokenizer of the teacher (decoder) or the student (encoder)."""
        return Tokenizer(self.tokenizer_folder(kind), kind)


def length(settings: config.Text, kind: Kind) -> int:
    """Tokens a row for a model of `kind`."""
    return settings.teacher_length if kind == "decoder" else settings.student_length


def _settings(data: config.Data, settings: config.Text) -> dict[str, Any]:
    """The fields that what is prepared depends on, and what the files looked like."""
    fields = config.to_dict(data)
    tokens = config.to_dict(settings)
    if data.on_error == "stop":
        # A length then decides whether there is a result, not which.
        del tokens["teacher_length"], tokens["student_length"]
    if data.path:
        fields.pop("world")
        fields["files"] = _fingerprint(pathlib.Path(data.path), data.click_log)
    else:
        fields = {"world": fields["world"], "click_rules": fields["click_rules"]}
    return {"data": fields, "text": tokens}


def _fingerprint(folder: pathlib.Path, click_log: str) -> list[list[Any]]:
    """Name, size and time of every file that could be read."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if click_log:
        files.append(pathlib.Path(click_log))
    return [
        [str(path), path.stat().st_size, path.stat().st_mtime_ns]
        for path in files
        if path.is_file()
    ]


def prepare(
    data: config.Data,
    settings: config.Text,
    workdir: pathlib.Path,
    *,
    replace: bool = False,
) -> Prepared:
    """Prepares the data of a workdir, or finds that it is prepared.

    Raises:
      DataError: at a malformed record, naming file, line and field.
      StageError: when the workdir holds other data.
    """
    folder = workdir / NAME
    account = manifest.Manifest(
        kind=NAME, settings=_settings(data, settings), inputs={}
    )
    if manifest.is_done(folder, account, replace=replace):
        found = manifest.load(folder)
        assert found is not None
        return Prepared(folder, found, settings)
    for stale in ("corpus", "lists", "clicks", "tokenizers"):
        shutil.rmtree(folder / stale, ignore_errors=True)
    raw = load_beir(data) if data.path else _made(data)
    account.save(folder)
    prepared = Prepared(folder, account, settings)
    datasets.write_corpus(folder / "corpus", raw.documents)
    facts: dict[str, Any] = {"report": raw.report}
    kinds: tuple[Kind, ...] = ("decoder", "encoder")
    for kind in kinds:
        target = prepared.tokenizer_folder(kind)
        if target.is_relative_to(folder):
            target.parent.mkdir(exist_ok=True)
            if kind == "decoder":
                size = settings.teacher_vocab_size
                text.train_bpe(_texts(raw, kind), size, target)
            else:
                size = settings.student_vocab_size
                text.train_wordpiece(_texts(raw, kind), size, target)
        tokenizer = Tokenizer(target, kind)
        facts[kind] = {
            "tokenizer": tokenizer.digest,
            "template": tokenizer.template_digest,
            "vocab_size": tokenizer.vocab_size,
        }
        _drop_long_queries(raw, tokenizer, length(settings, kind), data.on_error)
    datasets.write_lists(folder / "lists", raw.lists)
    datasets.write_clicks(folder / "clicks", raw.clicks)
    for name, count in raw.report.items():
        print(f"[{NAME}] {name}: {count}", flush=True)
    return Prepared(folder, account.finish(folder, **facts), settings)


def _texts(raw: Loaded, kind: Kind) -> Iterator[str]:
    """Texts to train a tokenizer on: documents and queries, evenly over each."""
    clicks = raw.clicks.get("train", [])
    for source, words in (
        (raw.documents, lambda one: text.document_text(one, kind)),
        (clicks, lambda one: one.query),
        (raw.lists["train"], lambda one: one.query),
        (raw.lists["unlabelled"], lambda one: one.query),
    ):
        for one in source[:: max(1, len(source) // _TOKENIZER_TEXTS)]:
            yield words(one)


def _drop_long_queries(
    raw: Loaded, tokenizer: Tokenizer, tokens: int, on_error: str
) -> None:
    """Stops at, or drops, queries that leave no room for a document in a row.

    A query is never cut: half a question is another question.
    """
    field = "teacher_length" if tokenizer.kind == "decoder" else "student_length"
    for name, records in [*raw.lists.items(), *raw.clicks.items()]:
        room = [
            len(query) + 1 < tokens
            for query in tokenizer.queries([one.query for one in records])
        ]
        if all(room):
            continue
        first = records[room.index(False)].query
        reason = (
            f"{len(room) - sum(room)} queries of {name} have no room for a document in "
            f"text.{field} {tokens} tokens, the first: {first[:80]!r}"
        )
        if on_error == "stop":
            raise DataError(
                f"{reason}; raise --config.text.{field}, or drop such queries with "
                "--config.data.on_error=skip"
            )
        key = f"dropped, too long for text.{field}, {name}"
        raw.report[key] = len(room) - sum(room)
        records[:] = [one for one, fits in zip(records, room, strict=True) if fits]


def _made(data: config.Data) -> Loaded:
    """The made world's records."""
    world = SearchWorld(data.world)

    def ranked(index: int, labelled: bool) -> RankedList:
        query, meaning = world.query(index), world.meaning(index)
        rows = world.candidates(index)
        grades = (
            [grade(meaning, world.content(row)) for row in rows] if labelled else []
        )
        return RankedList(
            query_id=query.id,
            query=query.text,
            documents=np.array(rows, np.int64),
            labels=np.array(grades or [0] * len(rows), np.float32),
            first_stage=-np.arange(len(rows), dtype=np.float32),
            judged_ids=tuple(f"d{row}" for row in rows) if labelled else (),
            judged_grades=np.array(grades, np.int32),
        )

    splits = world.splits()
    clicks, report = clicks_to_examples(world.click_log(), data.click_rules)
    return Loaded(
        documents=[world.document(row) for row in range(world.num_documents)],
        lists={
            name: [ranked(index, name != "unlabelled") for index in indices]
            for name, indices in splits.items()
        },
        clicks=clicks,
        report={
            "documents": world.num_documents,
            **{f"queries, {name}": len(indices) for name, indices in splits.items()},
            **report,
        },
    )
