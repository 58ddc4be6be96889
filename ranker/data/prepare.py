"""The prepare stage: raw data to records and tokenizers, once, in WORKDIR/prepare."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ranker import config, manifests, storage
from ranker.data import datasets, text
from ranker.data.beir import Loaded, load_beir
from ranker.data.clicks import clicks_to_examples
from ranker.data.records import ClickExample, Document, RankedList
from ranker.data.text import Tokenizer
from ranker.data.world import SearchWorld, grade
from ranker.errors import DataError

NAME = manifests.PREPARE
ROLES: tuple[config.Role, ...] = ("teacher", "student")
_TOKENIZER_TEXTS = 200_000  # texts that a tokenizer is trained on, at most


@dataclass(frozen=True)
class Prepared:
    """What the prepare stage has made."""

    folder: pathlib.Path
    manifest: manifests.Manifest
    text: config.Text

    def inputs(self, *pieces: str) -> dict[str, str]:
        """Digests of the pieces that a stage reads, for its manifest.

        Args:
          pieces: "corpus", "lists/SPLIT", "clicks/SPLIT", or a role, for its tokenizer
            and template.
        """
        digests = self.manifest.facts["pieces"]
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
    manifest = manifests.Manifest(
        kind=NAME, settings=_settings(data, settings), inputs={}
    )
    with manifests.claim(folder, manifest, replace=replace, wait=True) as todo:
        if todo:
            return _prepare(data, settings, folder, manifest)
        found = manifests.load(folder)
        assert found is not None
        return Prepared(folder, found, settings)


def remember(prepared: Prepared, data: config.Data) -> None:
    """Notes the settings of a whole run, for stages that are run alone afterwards.

    They may differ from those that the data was prepared with in what a result does not
    depend on, such as the length of a row.
    """
    told = _config(data, prepared.text)
    if prepared.manifest.facts.get("config") != told["config"]:
        prepared.manifest.finish(prepared.folder, **told)


def _config(data: config.Data, settings: config.Text) -> dict[str, Any]:
    """What a stage that is run alone in this workdir begins from, as JSON has it."""
    fields = {"data": config.to_dict(data), "text": config.to_dict(settings)}
    return {"config": json.loads(json.dumps(fields))}


def predict(
    found: manifests.Manifest, manifest: manifests.Manifest
) -> manifests.Manifest:
    """What is known of the data before it is prepared again, for a dry run.

    Args:
      found: of the data as it is prepared.
      manifest: of the data as it is to be prepared.
    """
    pieces = dict(found.facts["pieces"])
    for change in manifests.changes(found, manifest):
        role = next((one for one in ROLES if change.startswith(f"text.{one}_")), None)
        for piece in [role] if role else pieces:
            pieces[piece] = "not known before it is prepared"
    facts = {**found.facts, "pieces": pieces, "files": {}}
    return dataclasses.replace(manifest, facts=facts, done=True)


def _prepare(
    data: config.Data,
    settings: config.Text,
    folder: pathlib.Path,
    manifest: manifests.Manifest,
) -> Prepared:
    for stale in ("corpus", "lists", "clicks", "tokenizers"):
        shutil.rmtree(folder / stale, ignore_errors=True)
    raw = load_beir(data) if data.path else _made(data)
    manifest.save(folder)
    prepared = Prepared(folder, manifest, settings)
    datasets.write_corpus(folder / "corpus", raw.documents)
    facts: dict[str, Any] = {"report": raw.report, **_config(data, settings)}
    pieces = {"corpus": _content(raw.documents)}
    for role in ROLES:
        target = prepared.tokenizer_folder(role)
        _make_tokenizer(target, settings, role, raw)
        tokenizer = prepared.tokenizer(role)
        facts[role] = {
            "tokenizer": tokenizer.digest,
            "template": tokenizer.template_digest,
            "vocab_size": tokenizer.vocab_size,
        }
        pieces[role] = storage.digest([tokenizer.digest, tokenizer.template_digest])
        tokens = settings.of(role, "length")
        _drop_long_queries(raw, tokenizer, tokens, f"{role}_length", data.on_error)
    datasets.write_lists(folder / "lists", raw.lists)
    datasets.write_clicks(folder / "clicks", raw.clicks)
    for kind, splits in (("lists", raw.lists), ("clicks", raw.clicks)):
        for split, records in splits.items():
            pieces[f"{kind}/{split}"] = _content(records)
    for name, count in raw.report.items():
        print(f"[{NAME}] {name}: {count}", flush=True)
    files = manifests.outputs(folder)
    done = manifest.finish(folder, **facts, pieces=pieces, files=files)
    return Prepared(folder, done, settings)


def _content(records: Iterable[Any]) -> str:
    """Digest of records, in their order: later stages depend on it and on no file."""
    sha = hashlib.sha256()
    for record in records:
        for field in dataclasses.fields(record):
            value = getattr(record, field.name)
            array = isinstance(value, np.ndarray)
            sha.update(value.tobytes() if array else repr(value).encode())
            sha.update(b"\0")
    return sha.hexdigest()[:16]


def _make_tokenizer(
    target: pathlib.Path, settings: config.Text, role: config.Role, raw: Loaded
) -> None:
    """Copies the tokenizer that the settings name, or trains one on the corpus."""
    template = settings.of(role, "template")
    if given := settings.of(role, "tokenizer"):
        Tokenizer(given, template).loaded.save_pretrained(str(target))
        return
    target.mkdir(parents=True, exist_ok=True)
    size = settings.of(role, "vocab_size")
    train = text.train_wordpiece if template == "pair" else text.train_bpe
    train(_texts(raw, template), size, target)


def _texts(raw: Loaded, template: config.Template) -> Iterator[str]:
    """Texts to train a tokenizer on: documents and queries, evenly over each."""
    clicks = raw.clicks.get("train", [])
    for source, words in (
        (raw.documents, lambda one: text.document_text(one, template)),
        (clicks, lambda one: one.query),
        (raw.lists["train"], lambda one: one.query),
        (raw.lists["unlabelled"], lambda one: one.query),
    ):
        for one in source[:: max(1, len(source) // _TOKENIZER_TEXTS)]:
            yield words(one)


def _drop_long_queries(
    raw: Loaded, tokenizer: Tokenizer, tokens: int, field: str, on_error: str
) -> None:
    """Stops at, or drops, queries that leave no room for a document in a row.

    A query is never cut: half a question is another question.
    """
    for name, records in [*raw.lists.items(), *raw.clicks.items()]:
        room = [
            len(query) + len(tokenizer.tail) < tokens
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
