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
    cuts = np.cumsum([*grid.cuts, grid.unlabelled])
    if len(ids) <= cuts[-1]:
        raise SystemExit(
            f"{folder}: {len(ids):,} queries have {grid.candidates} candidates, and "
            f"more than {cuts[-1]:,} are needed; name a larger collection (--data)"
        )
    parts = dict(zip(SPLITS, np.split(np.arange(len(ids)), cuts), strict=True))
    parts["test"] = parts["test"][: grid.test]
    parts["dev"] = parts["dev"][: grid.dev]
    return Collection(
        ids=ids,
        documents=[[d for d, _ in run[q]] for q in ids],
        grades=np.float32([[grades[q].get(d, 0.0) for d, _ in run[q]] for q in ids]),
        ideal=np.float32([ideal_dcg(grades[q].values()) for q in ids]),
        bm25=np.float32([[score for _, score in run[q]] for q in ids]),
        texts=[(queries[q], [corpus[d] for d, _ in run[q]]) for q in ids],
        parts=parts,
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


def write_folder(data: Collection, folder: pathlib.Path, queries: int) -> pathlib.Path:
    """The split as a BEIR folder for the product's own stages, with click logs.

    Train holds the labelled lists, the log the judged pairs of the unlabelled ones and
    of the labels that are left over.

    Args:
      data: queries and documents.
      folder: to be made; left alone where it is whole.
      queries: of test and of dev, the first.
    """
    if (folder / "whole").exists():
        return folder
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    rows = {
        "train": data.parts["labelled"][:200],
        "dev": data.parts["dev"][:queries],
        "test": data.parts["test"][:queries],
    }
    write_texts(data, np.concatenate(list(rows.values())), folder)
    for split, part in rows.items():
        judged = ["query-id\tcorpus-id\tscore\n"]
        for row in part:
            for at in np.flatnonzero(data.grades[row]):
                grade = int(data.grades[row, at])
                judged.append(f"{data.ids[row]}\t{data.documents[row][at]}\t{grade}\n")
        (folder / "qrels" / f"{split}.tsv").write_text("".join(judged))
        write_bm25(data, part, folder / "runs" / f"bm25.{split}.trec")
    _write_clicks(data, folder)
    (folder / "whole").touch()
    return folder


def write_texts(data: Collection, rows: np.ndarray, folder: pathlib.Path) -> None:
    """Writes the queries of some rows, and the documents that they have to rank."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus, queries = {}, []
    for row in rows:
        query, pairs = data.texts[row]
        corpus |= dict(zip(data.documents[row], pairs, strict=True))
        queries.append({"_id": data.ids[row], "text": query})
    texts = [{"_id": d, "title": a, "text": b} for d, (a, b) in corpus.items()]
    _write_lines(folder / "corpus.jsonl", texts)
    _write_lines(folder / "queries.jsonl", queries)


def write_bm25(data: Collection, rows: np.ndarray, path: pathlib.Path) -> None:
    """Writes the candidates of some rows as a TREC run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for row in rows:
            ranked = zip(data.documents[row], data.bm25[row], strict=True)
            for rank, (document, score) in enumerate(ranked, 1):
                file.write(f"{data.ids[row]} Q0 {document} {rank} {score} bm25\n")


def _write_clicks(data: Collection, folder: pathlib.Path) -> None:
    clicks = []
    for row in [*data.parts["unlabelled"], *data.parts["labelled"][200:]]:
        query, pairs = data.texts[row]
        for at in np.flatnonzero(data.grades[row]):
            document, (title, text) = data.documents[row][at], pairs[at]
            clicks.append(
                {
                    "query": query,
                    "document_id": document,
                    "title": title,
                    "summary": text,
                }
            )
    _write_lines(folder / "clicks.jsonl", clicks)


def write_shuffled(folder: pathlib.Path) -> None:
    """Writes clicks_shuffled.jsonl: the rows of clicks.jsonl under others' queries."""
    clicks = [json.loads(line) for line in _lines(folder / "clicks.jsonl")]
    order = np.random.default_rng(0).permutation(len(clicks))
    # Along one cycle through all rows, so that none keeps its own query.
    asked = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    rows = [{**one, "query": clicks[asked[i]]["query"]} for i, one in enumerate(clicks)]
    _write_lines(folder / "clicks_shuffled.jsonl", rows)


def _write_lines(path: pathlib.Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
