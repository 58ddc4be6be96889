"""Whole TREC files: what is read, the fast way or the slow one, what is refused."""

import gzip

import pytest

from ranker.data import trec
from ranker.errors import DataError

RUN = "q1 Q0 a 1 2.5 x\nq1 Q0 b 2 1e-3 x\nq2 Q0 a 1 -7 x\n"
SCORES = {"q1": {"a": 2.5, "b": 0.001}, "q2": {"a": -7.0}}


def write(tmp_path, text, name="run.trec"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "fast"),
    [
        (RUN, True),
        (RUN.replace(" ", "\t"), True),
        (RUN.replace("\n", "\r\n"), True),
        (RUN.rstrip("\n"), True),
        ("\n" + RUN, True),
        (gzip.compress(RUN.encode(), mtime=0), True),
        (b"\xef\xbb\xbf" + RUN.encode(), True),
        (RUN.replace("q1 Q0", "q1  Q0"), False),  # blanks as in a printed table
        (RUN.replace("x\nq2", "x and more\nq2"), False),
        (RUN.replace(" 1 2.5", " 1.0 2.5"), False),
    ],
)
def test_a_run_is_read_the_fast_or_the_slow_way(tmp_path, monkeypatch, text, fast):
    slow = by_line(monkeypatch)
    assert trec.load_run(write(tmp_path, text)).scores == SCORES
    assert bool(slow) != fast


def by_line(monkeypatch):
    """Notes each run that is read line by line."""
    noted, read = [], trec.formats.read_run

    def noting(path, **options):
        noted.append(path)
        return read(path, **options)

    monkeypatch.setattr(trec.formats, "read_run", noting)
    return noted


def test_lines_of_a_query_may_lie_apart_and_ids_may_be_any(tmp_path, monkeypatch):
    path = write(tmp_path, 'q" Q0 漢字 1 2 x\nr Q0 "a" 1 1 x\nq" Q0 #,; 2 1 x\n')
    slow = by_line(monkeypatch)
    expected = {'q"': {"漢字": 2.0, "#,;": 1.0}, "r": {'"a"': 1.0}}
    assert trec.load_run(path).scores == expected and not slow


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RUN.replace("1e-3", "nan"), r":2: field 'score': found 'nan', .*finite"),
        (RUN.replace("1e-3", "inf"), r":2: field 'score'"),
        (RUN.replace("1e-3", "high"), r":2: field 'score': found 'high'"),
        (RUN.replace("Q0 b", "Q0 a"), r":2: .*found 'a', expected a document once"),
        ("q Q0 a 1 2 x\nr Q0 a 1 2 x\nq Q0 a 2 1 x\n", r":3: .*once a query"),
        (RUN.replace("2 1e-3", "1e-3 2"), r":2: field 'rank': .*columns: query, Q0"),
        ("q1 0 a 1\n", r":1: .*6 columns.*meant for --qrels"),
        ("q1 Q0 a 1 2.5\n", ":1: .*6 columns"),
        (RUN + "q2 Q0 b 2 1 \n", ":4: .*6 columns"),  # five, and a blank
        (RUN + "q2  b 2 1 x", ":4: .*6 columns"),
        ("", "is empty; a run is lines of 6 columns"),
        (RUN.encode("utf-16"), ":1: .*UTF-8"),
        (b"\x1f\x8b" + RUN.encode(), "gzip stream is broken"),
    ],
)
def test_runs_that_cannot_be_read_name_the_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as error:
        trec.load_run(write(tmp_path, text))
    assert "run.trec" in str(error.value) and "--config" not in str(error.value)


def test_a_missing_run_names_its_neighbours(tmp_path):
    write(tmp_path, RUN)
    with pytest.raises(DataError, match="run.tre: no such file.*run.trec"):
        trec.load_run(tmp_path / "run.tre")


def test_scores_that_rise_with_the_rank_are_told(tmp_path):
    lines = [f"q Q0 d{n} {n} {n / 9} x" for n in range(1, 9)]
    (note,) = trec.load_run(write(tmp_path, "\n".join(lines))).notes
    assert "scores rise from rank to rank" in note
    assert not trec.load_run(write(tmp_path, RUN)).notes


def test_judgements_in_both_forms(tmp_path):
    expected = {"q1": {"a": 2, "b": 0}, "q2": {"a": 1}}
    four = "q1 0 a 2\nq1 0 b 0\nq2 0 a 1\n"
    assert trec.load_qrels(write(tmp_path, four)).grades == expected
    three = "query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\tb\t0\nq2\ta\t1\n"
    assert trec.load_qrels(write(tmp_path, three)).grades == expected
    assert (
        trec.load_qrels(write(tmp_path, gzip.compress(four.encode()))).grades
        == expected
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RUN, r":1: .*meant for --run\)"),
        ("q 0 2 a\n", ":1: field 'score': found 'a'"),
        (
            "q a 0 2\nq b 0 1\n",
            ":2: .*found '1', expected 2, the grade that an earlier line",
        ),
        ("", "holds no judgement"),
    ],
)
def test_judgements_that_cannot_be_read_name_the_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        trec.load_qrels(write(tmp_path, text, "qrels.txt"))


def test_fields_of_queries(tmp_path):
    tsv = write(
        tmp_path, "query_id\tfrequency\tkind\nq1\t7\tbuy\nq2\t\tfind\n", "f.tsv"
    )
    expected = {
        "frequency": {"q1": "7", "q2": ""},
        "kind": {"q1": "buy", "q2": "find"},
    }
    assert trec.load_fields(tsv) == expected
    lines = '{"_id": "q1", "text": "t", "metadata": {"n": 7}}\n{"_id": 2, "n": [1]}\n'
    assert trec.load_fields(write(tmp_path, lines, "f.jsonl")) == {"n": {"q1": 7}}
    for text, name, message in (
        ("id\nq", "f.tsv", ":1: found one column"),
        ("id\tx\nq", "f.tsv", ":2: found 1 cells between tabs, expected 2: id, x"),
        ("id\tx\nq\t1\nq\t2", "f.tsv", ":3: the query 'q' has an earlier line"),
        ("{}", "f.jsonl", ":1: expected a JSON object with a query_id"),
        ("[", "f.jsonl", ":1: expected a JSON object with a query_id"),
        ("id\tx\n", "f.tsv", "holds no field"),
    ):
        with pytest.raises(DataError, match=message):
            trec.load_fields(write(tmp_path, text, name))


def test_texts_of_queries_and_their_length(tmp_path):
    texts = {"q1": "two words", "q2": "one"}
    assert trec.load_queries(write(tmp_path, "q1\ttwo words\nq2\tone\n", "q.tsv")) == (
        texts
    )
    lines = '{"_id": "q1", "text": "two words"}\n{"_id": "q2", "text": "one"}\n'
    assert trec.load_queries(write(tmp_path, lines, "q.jsonl")) == texts
    assert trec.query_lengths(texts) == {"query length (words)": {"q1": 2, "q2": 1}}
    assert trec.query_lengths({"q": "搜索引擎"}) == {
        "query length (characters)": {"q": 4}
    }
    with pytest.raises(DataError, match=":1: found no tab"):
        trec.load_queries(write(tmp_path, "q1 two words", "q.tsv"))
