"""The prepare stage: raw data to records and tokenizers, once, in WORKDIR/prepare."""

import dataclasses
import pathlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ranker import config, manifest
from ranker.data import datasets, text
from ranker.data.beir import load_beir
from ranker.data.clicks import clicks_to_examples
from ranker.data.pipeline import Source
from ranker.data.records import RankedList
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

    def corpus(self) -> Source:
        """Documents by row."""
        return datasets.load_corpus(self.folder / "corpus")

    def lists(self, split: str) -> Source:
        """Queries of a split with their candidates."""
        return datasets.load_lists(self.folder / "lists", split)

    def clicks(self, split: str) -> Source:
        """Continued pre-training examples of a split."""
        return datasets.load_clicks(self.folder / "clicks", split)

    def tokenizer_folder(self, kind: Kind) -> pathlib.Path:
        """Hugging Face folder of the teacher's (decoder) or student's (encoder) tokens."""
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
    fields.pop("on_error")
    if data.path:
        fields.pop("world")
        fields["files"] = _fingerprint(pathlib.Path(data.path), data.click_log)
    else:
        fields = {"world": fields["world"], "click_rules": fields["click_rules"]}
    # Lengths belong to the stages that read them.
    tokens = config.to_dict(settings)
    del tokens["teacher_length"], tokens["student_length"]
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
    if manifest.begin(folder, account, replace=replace):
        found = manifest.load(folder)
        assert found is not None
        return Prepared(folder, found, settings)
    for stale in ("corpus", "lists", "clicks", "tokenizers"):
        shutil.rmtree(folder / stale, ignore_errors=True)
    report = _from_files(data, folder) if data.path else _from_world(data, folder)
    corpus = datasets.load_corpus(folder / "corpus")
    facts: dict[str, Any] = {"report": report}
    prepared = Prepared(folder, account, settings)
    trainers: dict[Kind, Any] = {
        "decoder": (settings.teacher_tokenizer, text.train_bpe),
        "encoder": (settings.student_tokenizer, text.train_wordpiece),
    }
    sizes = {
        "decoder": settings.teacher_vocab_size,
        "encoder": settings.student_vocab_size,
    }
    for kind, (given, train) in trainers.items():
        target = prepared.tokenizer_folder(kind)
        if not given:
            target.parent.mkdir(exist_ok=True)
            train(_texts(prepared, corpus, kind), sizes[kind], target)
        tokenizer = Tokenizer(target, kind)
        facts[kind] = {
            "tokenizer": tokenizer.digest,
            "template": tokenizer.template_digest,
            "vocab_size": tokenizer.vocab_size,
        }
    for name, count in report.items():
        print(f"[{NAME}] {name}: {count}", flush=True)
    done = account.finish(folder, **facts)
    return Prepared(folder, done, settings)


def _texts(prepared: Prepared, corpus: Source, kind: Kind) -> Iterator[str]:
    """Texts to train a tokenizer on: documents and queries, evenly over the corpus."""
    stride = max(1, len(corpus) // _TOKENIZER_TEXTS)
    for row in range(0, len(corpus), stride):
        yield text.document_text(corpus[row], kind)
    clicks = prepared.clicks("train")
    stride = max(1, len(clicks) // _TOKENIZER_TEXTS)
    for row in range(0, len(clicks), stride):
        yield clicks[row].query
    for split in ("train", "unlabelled"):
        for record in prepared.lists(split):  # type: ignore[attr-defined]
            yield record.query


def _from_world(data: config.Data, folder: pathlib.Path) -> dict[str, Any]:
    world = SearchWorld(data.world)
    rows = range(world.num_documents)
    datasets.write_corpus(folder / "corpus", map(world.document, rows))

    def ranked(index: int, labelled: bool) -> RankedList:
        query, meaning = world.query(index), world.meaning(index)
        documents = world.candidates(index)
        grades = [grade(meaning, world.content(row)) for row in documents]
        return RankedList(
            query_id=query.id,
            query=query.text,
            documents=np.array(documents, np.int64),
            labels=np.array(grades if labelled else [0] * len(grades), np.float32),
            first_stage=-np.arange(len(documents), dtype=np.float32),
            judged_ids=tuple(f"d{row}" for row in documents) if labelled else (),
            judged_grades=np.array(grades if labelled else [], np.int32),
        )

    splits = world.splits()
    datasets.write_lists(
        folder / "lists",
        {
            name: (ranked(index, name != "unlabelled") for index in indices)
            for name, indices in splits.items()
        },
    )
    examples, dropped = clicks_to_examples(world.click_log(), data.click_rules)
    datasets.write_clicks(folder / "clicks", examples)
    return {
        "documents": world.num_documents,
        **{f"queries, {name}": len(indices) for name, indices in splits.items()},
        **dropped,
    }


def _from_files(data: config.Data, folder: pathlib.Path) -> dict[str, Any]:
    loaded = load_beir(data)
    datasets.write_corpus(folder / "corpus", loaded.documents)
    datasets.write_lists(folder / "lists", loaded.lists)
    datasets.write_clicks(folder / "clicks", loaded.clicks)
    return loaded.report
