"""Inputs of a scoring job: every kind is cut and read the same, at any chunk size."""

import contextlib
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from ranker import config
from ranker.errors import DataError
from ranker.scoring import pair_files
from ranker.scoring.pair_files import open_input

QUERIES = {f"q{i}": f"what is {i}" for i in range(7)}
DOCUMENTS = {f"d{i}": (f"title {i}", f"text of {i}") for i in range(9)}
PAIRS = [(q, d) for n, q in enumerate(QUERIES) for d in list(DOCUMENTS)[: n % 4 + 1]]


def rows(pairs=PAIRS):
    return [
        {
            "query_id": q,
            "document_id": d,
            "query": QUERIES[q],
            "title": DOCUMENTS[d][0],
            "text": DOCUMENTS[d][1],
        }
        for q, d in pairs
    ]


def write_records(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(json.dumps(record).encode())
    writer.close()


def write_jsonl(path, records):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")


def write_beir(folder, lines, name="runs/bm25.test.trec"):
    (folder / "runs").mkdir(parents=True)
    (folder / "qrels").mkdir()
    documents = [{"_id": d, "title": a, "text": b} for d, (a, b) in DOCUMENTS.items()]
    write_jsonl(folder / "corpus.jsonl.gz", documents)
    queries = [{"_id": q, "text": text} for q, text in QUERIES.items()]
    write_jsonl(folder / "queries.jsonl", queries)
    path = folder / name
    with gzip.open(path, "wt") if name.endswith(".gz") else path.open("w") as file:
        file.write("".join(f"{line}\n" for line in lines))


def run_lines(pairs=PAIRS):
    return [f"{q} Q0 {d} 1 {-n} tag" for n, (q, d) in enumerate(pairs)]


def make(kind, folder):
    """(input path, glob of pairs) of the same pairs in files of each kind."""
    folder.mkdir()
    half = len(PAIRS) // 2
    if kind == "parquet":
        table = pa.Table.from_pylist(rows())
        pq.write_table(table.slice(0, half), folder / "a.parquet", row_group_size=3)
        pq.write_table(table.slice(half), folder / "b.parquet", row_group_size=100)
    elif kind == "array_record":
        write_records(folder / "a.array_record", rows()[:half])
        write_records(folder / "b.array_record", rows()[half:])
    elif kind == "jsonl":
        write_jsonl(folder / "a.jsonl.gz", rows()[:half])
        write_jsonl(folder / "b.jsonl", rows()[half:])
    elif kind == "qrels":
        lines = ["query-id\tcorpus-id\tscore", "", *(f"{q}\t{d}\t1" for q, d in PAIRS)]
        write_beir(folder, lines, "qrels/test.tsv")
        return folder, "qrels/*"
    else:
        write_beir(folder, run_lines(), f"runs/bm25.test.trec{kind}")
    return folder, "runs/*"


@pytest.fixture
def opened():
    with contextlib.ExitStack() as stack:

        def call(path, pairs="runs/*", cache="", world=None):
            source = open_input(
                str(path),
                pairs=pairs,
                world=world or config.World(),
                cache=str(cache),
                lenient=False,
            )
            return stack.enter_context(contextlib.closing(source))

        yield call


def texts(content):
    """(number, query id, query, document id, title, text) of each pair."""
    found = []
    for record in content.lists:
        for place in record.documents:
            one = content.corpus[place]
            found.append((record.query_id, record.query, one.id, one.title, one.text))
    assert [pair[0] for pair in found] == content.query_ids
    assert [pair[2] for pair in found] == content.document_ids
    return list(zip(content.pairs.tolist(), found, strict=True))


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(
    "kind", ["parquet", "array_record", "jsonl", "qrels", "", ".gz"]
)
def test_every_pair_is_read_once_whatever_the_chunks(tmp_path, kind, size, opened):
    path, pairs = make(kind, tmp_path / "data")
    source = opened(path, pairs, tmp_path / "cache")
    chunks = list(source.chunks(size))
    assert [chunk.first for chunk in chunks] == [
        sum(one.pairs for one in chunks[:i]) for i in range(len(chunks))
    ]
    assert all(chunk.pairs <= 2 * size for chunk in chunks)
    wanted = [(n, (q, QUERIES[q], d, *DOCUMENTS[d])) for n, (q, d) in enumerate(PAIRS)]
    assert [one for chunk in chunks for one in texts(source.read(chunk))] == wanted
    # Any chunk alone, as a process does that goes on with what is missing.
    again = opened(path, pairs, tmp_path / "cache")
    for chunk in reversed(chunks):
        content = again.read(chunk)
        expected = wanted[chunk.first : chunk.first + chunk.pairs]
        assert texts(content) == expected and not content.bad
        assert again.ids(chunk) == (content.query_ids, content.document_ids)
    assert again.settings() == source.settings()


def test_runs_are_cut_between_queries(tmp_path, opened):
    path, pairs = make("", tmp_path / "data")
    source = opened(path, pairs, tmp_path / "cache")
    ends = [source.read(chunk).query_ids for chunk in source.chunks(5)]
    assert all(a[-1] != b[0] for a, b in zip(ends, ends[1:], strict=False))


def test_the_made_world_is_an_input(opened):
    world = config.World(num_topics=3, unlabelled_queries=10, candidates=6)
    source = opened("world", world=world)
    chunks = list(source.chunks(20))
    assert [chunk.pairs for chunk in chunks] == [24, 24, 12]
    content = source.read(chunks[1])
    assert source.ids(chunks[1]) == (content.query_ids, content.document_ids)
    assert len(set(zip(content.query_ids, content.document_ids, strict=True))) == 24
    assert content.corpus[content.lists[0].documents[0]].id == content.document_ids[0]


BAD = {
    "no document": ({"document_id": None}, "field 'document_id'"),
    "id with a blank": ({"query_id": "a b"}, "field 'query_id'"),
    "no text": ({"title": " ", "text": None}, "field 'text'"),
    "a null": ({"query": "x\0y"}, "null characters"),
    "twice": ({"query_id": "q0", "document_id": "d0"}, "it is pair 0 too"),
}


@pytest.mark.parametrize("kind", ["jsonl", "array_record"])
def test_what_is_no_pair_is_set_aside_with_its_place(tmp_path, kind, opened):
    records = [rows()[0], *({**rows()[1], **change} for change, _ in BAD.values())]
    path = tmp_path / f"a.{kind}"
    (write_jsonl if kind == "jsonl" else write_records)(path, [*records, ["no"]])
    source = opened(path)
    [chunk] = source.chunks(100)
    content = source.read(chunk)
    assert content.pairs.tolist() == [0]
    assert [one.pair for one in content.bad] == [1, 2, 3, 4, 5, 6]
    reasons = [one.reason for one in content.bad]
    for reason, (_, expected) in zip(reasons, BAD.values(), strict=False):
        assert expected in reason
    assert str(path) in reasons[0] and "expected an object" in reasons[-1]
    assert len(source.ids(chunk)[0]) == 7


def test_runs_that_name_what_is_not_there(tmp_path, opened):
    lines = run_lines([("q1", "d1")])
    extra = [
        "q9 Q0 d1 1 1 t",
        "q1 Q0 d99 1 1 t",
        "q1 d1 5 6 7",
        "one",
        "q1 Q0 d2 1 1 t",
    ]
    write_beir(tmp_path / "data", lines + extra)
    source = opened(tmp_path / "data", cache=tmp_path / "cache")
    [chunk] = source.chunks(100)
    content = source.read(chunk)
    assert content.document_ids == ["d1", "d2"]
    for one, expected in zip(
        content.bad,
        ["query 'q9', which", "document 'd99', which", "'q1 d1 5 6 7'", "'one'"],
        strict=True,
    ):
        assert expected in one.reason and "bm25.test.trec:" in one.reason


def test_a_document_that_comes_twice(tmp_path, opened):
    write_beir(tmp_path / "data", run_lines())
    twice = [{"_id": "d1", "title": "a", "text": "b"}] * 2
    write_jsonl(tmp_path / "data" / "corpus.jsonl.gz", twice)
    source = opened(tmp_path / "data", cache=tmp_path / "cache")
    chunk = next(source.chunks(100))
    with pytest.raises(DataError, match="corpus.jsonl.gz.*'d1' comes twice"):
        source.read(chunk)
    assert not list((tmp_path / "cache").iterdir())  # nothing half-made is left


def test_texts_that_changed_are_another_input(tmp_path, opened):
    path, pairs = make("jsonl", tmp_path / "data")
    before = opened(path, pairs).settings()
    write_jsonl(path / "b.jsonl", rows()[::-1])
    assert opened(path, pairs).settings() != before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no such file or folder; --config.input takes 'world'"),
        ("empty", "no corpus.jsonl and no file of pairs"),
        ("text.txt", "no corpus.jsonl and no file of pairs"),
        ("mixed", "several kinds.*one kind"),
        ("*.nothing", "no corpus.jsonl and no file of pairs"),
        ("norun", "no file matches 'runs/\\*'"),
        ("ftp://a/b", "ftp:// is not known; name a local path, or one of gs://"),
        (
            "columns.parquet",
            "found the columns query, expected|found the columns query;",
        ),
        ("text.parquet", "is not a Parquet file"),
        ("text.array_record", "is not an ArrayRecord file"),
        ("broken.jsonl.gz", "truncated or damaged"),
    ],
)
def test_bad_paths_say_what_is_wanted(tmp_path, name, message, opened):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for suffix in ("parquet", "jsonl"):
        (tmp_path / "mixed" / f"a.{suffix}").write_text("x")
    write_beir(tmp_path / "norun", [])
    (tmp_path / "norun" / "runs" / "bm25.test.trec").unlink()
    for other in ("text.txt", "text.parquet", "text.array_record"):
        (tmp_path / other).write_text("no such thing")
    pq.write_table(pa.table({"query": ["a"]}), tmp_path / "columns.parquet")
    write_jsonl(tmp_path / "whole.jsonl.gz", rows() * 50)
    data = (tmp_path / "whole.jsonl.gz").read_bytes()
    (tmp_path / "broken.jsonl.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=message):
        list(opened(name if "://" in name else tmp_path / name).chunks(10))


def test_a_group_of_rows_is_decoded_once(tmp_path, monkeypatch, opened):
    table = pa.Table.from_pylist(rows() * 20)
    pq.write_table(table, tmp_path / "a.parquet")
    begun = []
    decode = pq.ParquetFile.iter_batches

    def counted(self, *arguments, **options):
        begun.append(1)
        return decode(self, *arguments, **options)

    monkeypatch.setattr(pair_files, "_AT_ONCE", 7)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    source = opened(tmp_path / "a.parquet")
    chunks = list(source.chunks(10))
    ids = [source.ids(chunk) for chunk in chunks[::3]]
    assert len(begun) == 1
    every = table["document_id"].to_pylist()
    for chunk, (_, documents) in zip(chunks[::3], ids, strict=True):
        assert documents == every[chunk.first : chunk.first + chunk.pairs]


def test_a_list_longer_than_two_chunks_is_cut(tmp_path, opened):
    """No chunk grows without bound; every pair is in one, in order."""
    pairs = [("q1", f"d{i}") for i in range(23)] + [("q2", "d1"), ("q2", "d2")]
    lines = [
        {"query_id": q, "document_id": d, "query": "a", "title": "b", "text": d}
        for q, d in pairs
    ]
    write_jsonl(tmp_path / "pairs.jsonl", lines)
    source = opened(tmp_path / "pairs.jsonl")
    chunks = list(source.chunks(5))
    assert [one.pairs for one in chunks] == [10, 10, 5]
    read = [source.read(one) for one in chunks]
    found = [
        pair
        for one in read
        for pair in zip(one.query_ids, one.document_ids, strict=True)
    ]
    assert found == pairs
