import gzip
import json

import pytest

from ranker.data import formats, lines
from ranker.data.records import Document, Judgement, Query
from ranker.errors import DataError


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def corpus(*rows):
    return [json.dumps(row, ensure_ascii=False) for row in rows]


GOOD = {"_id": "d1", "title": "A title", "text": "some text"}


def test_corpus_plain_and_gzip(tmp_path):
    plain = write(tmp_path / "corpus.jsonl", *corpus(GOOD, {"_id": "d2", "text": "x"}))
    zipped = tmp_path / "corpus.jsonl.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    expected = [Document("d1", "A title", "some text"), Document("d2", "", "x")]
    assert list(formats.read_corpus(plain)) == expected
    assert list(formats.read_corpus(zipped)) == expected


def test_right_to_left_and_astral_text_is_kept(tmp_path):
    text = "שלום עולם 🦄𝔘𝔫𝔦 مرحبا"
    path = write(tmp_path / "queries.jsonl", *corpus({"_id": "q", "text": text}))
    assert list(formats.read_queries(path)) == [Query("q", text)]


def test_byte_order_mark_and_windows_lines(tmp_path):
    path = tmp_path / "queries.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"_id": "q", "text": "a"}\r\n\r\n')
    assert [query.id for query in formats.read_queries(path)] == ["q"]


BAD_DOCUMENTS = {
    "no text": ({"_id": "d", "title": " ", "text": ""}, "title or a text"),
    "no id": ({"title": "t", "text": "x"}, "_id"),
    "id with a space": ({"_id": "a b", "text": "x"}, "white space"),
    "text that is a number": ({"_id": "d", "text": 3}, "'text': found 3"),
    "null character": ({"_id": "d", "text": "a\0b"}, "null"),
    "lone surrogate": ({"_id": "d", "text": "\ud800"}, "surrogate"),
    "duplicate": (GOOD, "no earlier line"),
}


@pytest.mark.parametrize(("row", "message"), BAD_DOCUMENTS.values(), ids=BAD_DOCUMENTS)
def test_a_bad_document_names_file_line_and_field(tmp_path, row, message):
    path = tmp_path / "corpus.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps(row)}\n")
    with pytest.raises(DataError, match=message) as error:
        list(formats.read_corpus(path))
    assert f"{path}:2: field" in str(error.value)
    assert "on_error=skip" in str(error.value)
    skipped = formats.Skipped()
    kept = list(formats.read_corpus(path, on_error="skip", skipped=skipped))
    assert [one.id for one in kept] == ["d1"]
    assert skipped.counts == {"corpus.jsonl": 1}
    reason, mark, _ = str(error.value).partition("; correct it, or skip")
    assert mark
    assert skipped.report() == {
        "corpus.jsonl": {"records": 1, "of": 2, "first": reason}
    }


@pytest.mark.parametrize("line", ["{", "[1]", "nonsense", '"text"', "[" * 100_000])
def test_a_line_that_is_no_json_object(tmp_path, line):
    path = write(tmp_path / "queries.jsonl", line)
    with pytest.raises(DataError, match=r"queries.jsonl:1: .*JSON object"):
        list(formats.read_queries(path))


@pytest.mark.parametrize("text", ["", "   ", "\u200b\u200e", None, 7])
def test_an_empty_query(tmp_path, text):
    path = write(tmp_path / "queries.jsonl", json.dumps({"_id": "q", "text": text}))
    with pytest.raises(DataError, match="field 'text'"):
        list(formats.read_queries(path))


def test_a_missing_file_lists_the_folder(tmp_path):
    write(tmp_path / "corpus.json", "{}")
    with pytest.raises(DataError, match=r"no such file.*has corpus\.json"):
        list(formats.read_corpus(tmp_path / "corpus.jsonl"))
    with pytest.raises(DataError, match="is a folder"):
        list(formats.read_corpus(tmp_path))


def test_broken_gzip(tmp_path):
    rows = corpus(
        *({**GOOD, "_id": f"d{i}", "text": f"{i * 7919}"} for i in range(5000))
    )
    whole = gzip.compress("\n".join(rows).encode())
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="gzip stream is broken"):
        list(formats.read_corpus(path, on_error="skip"))
    path.write_text("plain")
    with pytest.raises(DataError, match="is not gzip"):
        list(formats.read_corpus(path))


def test_bytes_that_are_not_utf8(tmp_path):
    path = tmp_path / "queries.jsonl"
    path.write_bytes(b'{"_id": "q", "text": "a"}\n\xff\xfe\n')
    with pytest.raises(DataError, match=r"queries.jsonl:2: byte 0 is not UTF-8"):
        list(formats.read_queries(path))


def test_a_line_beyond_all_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE", 100)
    path = write(tmp_path / "queries.jsonl", "x" * 200)
    with pytest.raises(DataError, match=r":1: the line is over"):
        list(formats.read_queries(path))


# --- qrels and runs ---


def test_qrels_beir_and_trec(tmp_path):
    expected = [Judgement("q1", "d1", 2), Judgement("q1", "d2", -1)]
    beir = write(
        tmp_path / "a.tsv", "query-id\tcorpus-id\tscore", "q1\td1\t2", "q1\td2\t-1.0"
    )
    trec = write(tmp_path / "b.txt", "q1 0 d1 2", "q1 0 d2 -1")
    assert list(formats.read_qrels(beir)) == expected
    assert list(formats.read_qrels(trec)) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1\td1\thigh", "field 'score': found 'high', expected a number"),
        ("q1\td1\t1.5", "whole number"),
        ("q1\td1\tnan", "finite"),
        ("q1\td1", "query, document and grade"),
        ("q9\td1\t1", "field 'query-id': found 'q9', expected an id that the queries"),
        (
            "q1\td9\t1",
            "field 'corpus-id': found 'd9', expected an id that the documents",
        ),
    ],
)
def test_a_bad_judgement(tmp_path, line, message):
    path = write(tmp_path / "test.tsv", "query-id\tcorpus-id\tscore", line)
    remedy = "; correct it, or skip such records with --config.data.on_error=skip"
    with pytest.raises(DataError, match=rf"test.tsv:2: .*{message}.*{remedy}$"):
        list(formats.read_qrels(path, queries={"q1"}, documents={"d1"}))


def test_a_judged_document_needs_no_text(tmp_path):
    path = write(tmp_path / "test.tsv", "query-id\tcorpus-id\tscore", "q1\td9\t1")
    found = list(formats.read_qrels(path, queries={"q1"}))
    assert found == [Judgement("q1", "d9", 1)]


def test_a_pair_judged_twice(tmp_path):
    path = write(tmp_path / "test.tsv", "q d 1", "q d 2")
    with pytest.raises(DataError, match="test.tsv:1: "):
        list(formats.read_qrels(write(tmp_path / "test.tsv", "q")))
    path = write(tmp_path / "test.tsv", "q\td\t1", "q\td\t1", "q\td\t1")
    skipped = formats.Skipped()
    assert len(list(formats.read_qrels(path, skipped=skipped))) == 1
    assert skipped.repeated == {"test.tsv": 2} and not skipped.counts
    path = write(tmp_path / "test.tsv", "q\td\t1", "q\td\t2")
    with pytest.raises(DataError, match="test.tsv:2: .*an earlier line gives"):
        list(formats.read_qrels(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1 Q0 d1 1 nan tag", "field 'score'"),
        ("q1 Q0 d1 1 inf tag", "finite"),
        ("q1 Q0 d1 first 3 tag", "field 'rank'"),
        ("q1 d1 3", "6 columns"),
        ("Q0 q1 d1 1 3 tag", "field 'query': found 'Q0'"),
        ("q1 Q0 d7 1 3 tag", "field 'document': found 'd7'"),
    ],
)
def test_a_bad_run_line(tmp_path, line, message):
    path = write(tmp_path / "x.trec", "q1 Q0 d2 1 9 tag", line)
    with pytest.raises(DataError, match=rf"x.trec:2: {message}|x.trec:2: .*{message}"):
        list(formats.read_run(path, queries={"q1"}, documents={"d1", "d2"}))


def test_a_document_twice_in_a_run(tmp_path):
    path = write(tmp_path / "x.trec", "q Q0 d 1 9 t", "q Q0 d 2 8 t")
    with pytest.raises(DataError, match=r"x.trec:2: .*once a query"):
        list(formats.read_run(path))


def test_a_run_reads_as_it_was_written(tmp_path):
    run = {"q2": {"a": 0.1 + 0.2, "b": 1e-300, "c": 0.1 + 0.2}, "q1": {"ä": -3.0}}
    path = tmp_path / "deep" / "x.trec"
    formats.write_run(path, run, tag="us")
    read: dict = {}
    for one in formats.read_run(path):
        read.setdefault(one.query_id, {})[one.document_id] = one.score
    assert read == run
    # trec_eval's order: ties from the last id to the first.
    assert [line.split()[2] for line in path.read_text().splitlines()[:3]] == list(
        "cab"
    )
    assert [p.name for p in path.parent.iterdir()] == ["x.trec"]
