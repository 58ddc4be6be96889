"""Queries with their candidates: read from a BEIR folder or prepared, and tokenised."""

import dataclasses
import functools
import gzip
import hashlib
import json
import pathlib
from typing import Any

import numpy as np
from sizes import Grid

SPLITS = ("test", "dev", "unlabelled", "labelled")


@dataclasses.dataclass(frozen=True)
class Collection:
    """Queries with as many candidates each; Q queries, K candidates."""

    ids: list[str]
    documents: list[list[str]]  # ids of the candidates
    grades: np.ndarray  # [Q, K] float32, of the candidates
    ideal: np.ndarray  # [Q] float32, DCG@10 of the judged documents
    bm25: np.ndarray  # [Q, K] float32
    texts: list[tuple[str, list[tuple[str, str]]]]  # query, (title, text) of documents
    parts: dict[str, np.ndarray]  # name of a split -> rows

    def ndcg(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """NDCG@10 of each query [..., Q] by scores [..., Q, K]."""
        order = np.argsort(-scores, axis=-1, kind="stable")
        grades = np.broadcast_to(self.grades[rows], scores.shape)
        gains = np.take_along_axis(grades, order, axis=-1)[..., :10]
        found = (gains * discounts(gains.shape[-1])).sum(-1)
        ideal = self.ideal[rows]
        return np.where(ideal > 0, found / np.where(ideal > 0, ideal, 1), 0.0)


def discounts(depth: int) -> np.ndarray:
    """1 / log2(rank + 1) [depth]."""
    return 1 / np.log2(np.arange(2, depth + 2))


def ideal_dcg(grades) -> float:
    """DCG@10 of judgements in their best order."""
    best = np.sort(np.float32(list(grades)))[::-1][:10]
    return float((best * discounts(len(best))).sum())


def _lines(path: pathlib.Path):
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else path.open()
    with opened as file:
        yield from file


def read(folder: pathlib.Path, grid: Grid) -> Collection:
    """All judged queries of a BEIR folder with BM25 runs, split by the protocol."""
    (path,) = folder.glob("corpus.jsonl*")
    corpus = {
        one["_id"]: (one.get("title", ""), one["text"])
        for one in map(json.loads, _lines(path))
    }
    queries = {
        one["_id"]: one["text"]
        for one in map(json.loads, _lines(folder / "queries.jsonl"))
    }
    grades: dict[str, dict[str, float]] = {}
    for path in sorted((folder / "qrels").glob("*.tsv")):
        for line in list(_lines(path))[1:]:
            query, document, grade = line.split("\t")
            grades.setdefault(query, {})[document] = float(grade)
    run: dict[str, list[tuple[str, float]]] = {}
    for path in sorted((folder / "runs").glob("bm25.*")):
        for line in _lines(path):
            query, _, document, rank, score, _ = line.split()
            if int(rank) <= grid.candidates:
                run.setdefault(query, []).append((document, float(score)))
    usable = {query for query in grades if len(run.get(query, ())) == grid.candidates}
    ids = sorted(usable, key=lambda one: hashlib.sha256(one.encode()).hexdigest())
    cuts = np.cumsum([grid.test, grid.dev, grid.unlabelled])
    if len(ids) <= cuts[-1]:
        raise SystemExit(
            f"{folder}: {len(ids):,} queries have {grid.candidates} candidates, and "
            f"more than {cuts[-1]:,} are needed; take a smaller size (--size)"
        )
    return Collection(
        ids=ids,
        documents=[[d for d, _ in run[q]] for q in ids],
        grades=np.float32([[grades[q].get(d, 0.0) for d, _ in run[q]] for q in ids]),
        ideal=np.float32([ideal_dcg(grades[q].values()) for q in ids]),
        bm25=np.float32([[score for _, score in run[q]] for q in ids]),
        texts=[(queries[q], [corpus[d] for d, _ in run[q]]) for q in ids],
        parts=dict(zip(SPLITS, np.split(np.arange(len(ids)), cuts), strict=True)),
    )


def prepared(folder: pathlib.Path) -> Collection:
    """What the product's prepare stage wrote, with its own splits."""
    from ranker.data import datasets

    corpus = datasets.load_corpus(folder / "corpus")
    names = {"test": "test", "dev": "dev", "unlabelled": "unlabelled"}
    records, parts, start = [], {}, 0
    for name in SPLITS:
        found = datasets.load_lists(folder / "lists", names.get(name, "train"))
        records += list(found)
        parts[name] = np.arange(start, len(records))
        start = len(records)
    texts = {row: corpus[row] for row in {int(r) for x in records for r in x.documents}}
    return Collection(
        ids=[one.query_id for one in records],
        documents=[[texts[int(r)].id for r in one.documents] for one in records],
        grades=np.stack([one.labels for one in records]),
        ideal=np.float32([ideal_dcg(one.judged_grades) for one in records]),
        bm25=np.stack([one.first_stage for one in records]),
        texts=[
            (
                one.query,
                [(texts[int(r)].title, texts[int(r)].text) for r in one.documents],
            )
            for one in records
        ],
        parts=parts,
    )


def tokenise(data: Collection, folder: pathlib.Path, length: int) -> dict[str, Any]:
    """Pairs as an encoder reads them: tokens [Q, K, T], lengths and starts [Q, K].

    Args:
      data: queries and documents.
      folder: that holds tokenizer.json.
      length: T, of which a query takes at most 48.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    plain = functools.partial(tokenizer.encode_batch, add_special_tokens=False)
    pairs = [
        f"{title} {text}".strip() for _, ones in data.texts for title, text in ones
    ]
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    most = min(48, length - 3)
    heads = [[cls, *one.ids[:most], sep] for one in plain([q for q, _ in data.texts])]
    bodies = [one.ids for one in plain(pairs)]
    Q, K = data.grades.shape
    tokens = np.zeros((Q, K, length), np.int32)
    lengths = np.zeros((Q, K), np.int32)
    starts = np.zeros((Q, K), np.int32)
    for row, head in enumerate(heads):
        for place in range(K):
            body = bodies[row * K + place][: length - len(head) - 1]
            ids = [*head, *body, sep]
            tokens[row, place, : len(ids)] = ids
            lengths[row, place], starts[row, place] = len(ids), len(head)
    return {"tokens": tokens, "lengths": lengths, "starts": starts}


def write_folder(data: Collection, folder: pathlib.Path, queries: int) -> None:
    """The split as a BEIR folder for the product's own pipeline, with a click log.

    Train holds the labelled lists, the log the judged pairs of the unlabelled ones and
    of what labels are left over; test has `queries` queries. `clicks_shuffled.jsonl`
    has the same documents in the same order under queries that were dealt anew.

    Args:
      data: queries and documents.
      folder: to be made; left alone where it is whole.
      queries: of test and of dev.
    """
    if (folder / "whole").exists():
        return
    for name in ("qrels", "runs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    corpus = {
        document: pair
        for ids, (_, pairs) in zip(data.documents, data.texts, strict=True)
        for document, pair in zip(ids, pairs, strict=True)
    }
    _write_lines(
        folder / "corpus.jsonl",
        [
            {"_id": d, "title": title, "text": text}
            for d, (title, text) in corpus.items()
        ],
    )
    rows = {
        "train": data.parts["labelled"][:200],
        "dev": data.parts["dev"][:queries],
        "test": data.parts["test"][:queries],
    }
    used = [row for part in rows.values() for row in part]
    _write_lines(
        folder / "queries.jsonl",
        [{"_id": data.ids[row], "text": data.texts[row][0]} for row in used],
    )
    for split, part in rows.items():
        judged, run = ["query-id\tcorpus-id\tscore\n"], []
        for row in part:
            for at, document in enumerate(data.documents[row]):
                if data.grades[row, at]:
                    grade = int(data.grades[row, at])
                    judged.append(f"{data.ids[row]}\t{document}\t{grade}\n")
                score = data.bm25[row, at]
                run.append(f"{data.ids[row]} Q0 {document} {at + 1} {score} bm25\n")
        (folder / "qrels" / f"{split}.tsv").write_text("".join(judged))
        (folder / "runs" / f"bm25.{split}.trec").write_text("".join(run))
    _write_clicks(data, folder)
    (folder / "whole").touch()


def _write_clicks(data: Collection, folder: pathlib.Path) -> None:
    rest = data.parts["labelled"][200:]
    clicks = []
    for row in [*data.parts["unlabelled"], *rest]:
        for at in np.flatnonzero(data.grades[row]):
            title, text = data.texts[row][1][at]
            found = {
                "query": data.texts[row][0],
                "document_id": data.documents[row][at],
            }
            clicks.append({**found, "title": title, "summary": text})
    _write_lines(folder / "clicks.jsonl", clicks)
    write_shuffled(folder)


def write_shuffled(folder: pathlib.Path) -> None:
    """Writes clicks_shuffled.jsonl: the same texts, no query beside its own document."""
    clicks = [json.loads(line) for line in _lines(folder / "clicks.jsonl")]
    order = np.random.default_rng(0).permutation(len(clicks))
    # Along one cycle through all of them, so that none keeps its own query.
    dealt = {int(a): int(b) for a, b in zip(order, np.roll(order, 1), strict=True)}
    shuffled = [
        {**one, "query": clicks[dealt[i]]["query"]} for i, one in enumerate(clicks)
    ]
    _write_lines(folder / "clicks_shuffled.jsonl", shuffled)


def _write_lines(path: pathlib.Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
