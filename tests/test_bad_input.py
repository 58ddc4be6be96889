"""What users give by mistake, through the entry: a sentence that they can act on.

And what is odd but sound: no candidate, one candidate, a document of a book's length,
any script.
"""

import gzip
import json
import pathlib
import re
import shutil

import pytest

from ranker import cli, config, run
from ranker.data.prepare import prepare

ROOT = pathlib.Path(__file__).resolve().parents[1]
HEAD = "query-id\tcorpus-id\tscore\n"
DOCUMENTS = {
    "d1": ("Cats", "cats purr and sleep"),
    "d2": ("Dogs", "dogs bark and run"),
    "d3": ("", "fish swim in the sea"),
    "d4": ("Birds", ""),
    "כלב/..": (
        "שלום עולם",
        "كلب وقطة \u202b مرحبا",
    ),  # right to left, an id like a path
    "🦄": ("𝔘𝔫𝔦𝔠𝔬𝔯𝔫𝔰 🦄", "👩‍👩‍👧‍👦 𐍈 beyond the first plane " * 3),
    "long": ("A book", "a word of many and another one " * 20_000),  # 0.6 MB
}
QUERIES = {
    "q1": "cats and dogs that sleep",
    "q2": "dogs and cats that bark",
    "q3": "שלום",
    "q4": "🦄 𝔘𝔫𝔦",
    "q5": "a word of many",
    "none": "zzzzzz",  # BM25 finds nothing
    "missed": "yyyyyy",  # nor here
    "one": "swim",  # and here one document
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    corpus = [
        {"_id": name, "title": title, "text": text}
        for name, (title, text) in DOCUMENTS.items()
    ]
    queries = [{"_id": name, "text": text} for name, text in QUERIES.items()]
    for name, rows in (("corpus.jsonl", corpus), ("queries.jsonl", queries)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "qrels").mkdir()
    train = "q1\td1\t2\nq2\td2\t1\nq5\tlong\t1\nmissed\td4\t1\none\td3\t2\n"
    test = "q3\tכלב/..\t2\nq4\t🦄\t1\nnone\td4\t1\none\td3\t2\nq1\td1\t1\n"
    (folder / "qrels" / "train.tsv").write_text(HEAD + train, encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text(HEAD + test, encoding="utf-8")
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    return pathlib.Path(shutil.copytree(sound, tmp_path / "data"))


@pytest.fixture(autouse=True)
def signals(monkeypatch):
    """The entry minds SIGTERM; the tests' process keeps its own way."""
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)


def start(folder, *arguments):
    """What the entry says before it ends with an error."""
    file = str(ROOT / "configs" / "beir.py") + ":smoke"
    known = ["--config", file, "--workdir", str(folder.parent / "runs")]
    with pytest.raises(SystemExit) as stopped:
        run.main([*known, f"--config.data.path={folder}", *arguments])
    said = str(stopped.value)
    assert said.startswith("error: ") and "Traceback" not in said
    return said


def add(name, line):
    def change(folder):
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    return change


def cut_gzip(folder):
    whole = gzip.compress((folder / "corpus.jsonl").read_bytes())
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus.jsonl.gz").write_bytes(whole[: len(whole) // 2])


def run_file(text):
    def change(folder):
        (folder / "runs").mkdir()
        (folder / "runs" / "bm25.test.trec").write_text(text)

    return change


# What is changed -> what is said: where, what was found, what to do.
MISTAKES = {
    "no corpus": (
        lambda folder: (folder / "corpus.jsonl").unlink(),
        r"corpus\.jsonl: no such file; .* has qrels, queries\.jsonl",
    ),
    "no queries": (
        lambda folder: (folder / "queries.jsonl").unlink(),
        r"queries\.jsonl: no such file",
    ),
    "no test split": (
        lambda folder: (folder / "qrels" / "test.tsv").unlink(),
        r"no test\.tsv.*it has train\.tsv",
    ),
    "an empty query": (
        add("queries.jsonl", '{"_id": "x", "text": " "}'),
        r"queries\.jsonl:9: field 'text': found ' ', .*visible.*on_error=skip",
    ),
    "a document without text": (
        add("corpus.jsonl", '{"_id": "x", "title": "", "text": ""}'),
        r"corpus\.jsonl:8: field 'text': .*a title or a text.*on_error=skip",
    ),
    "a document without any field": (
        add("corpus.jsonl", "{}"),
        r"corpus\.jsonl:8: field '_id': found None",
    ),
    "a document twice": (
        add("corpus.jsonl", '{"_id": "d1", "text": "x"}'),
        r"corpus\.jsonl:8: field '_id': found 'd1', .*no earlier line",
    ),
    "a query twice": (
        add("queries.jsonl", '{"_id": "q1", "text": "x"}'),
        r"queries\.jsonl:9: field '_id': found 'q1', .*no earlier line",
    ),
    "an unknown query in qrels": (
        add("qrels/test.tsv", "x\td1\t1"),
        r"test\.tsv:7: field 'query-id': found 'x', .*the queries have.*by hand",
    ),
    "a pair judged twice": (
        add("qrels/test.tsv", "q1\td1\t2"),
        r"test\.tsv:7: .*the grade that an earlier line gives query",
    ),
    "a grade that is no number": (
        add("qrels/test.tsv", "q2\td2\thigh"),
        r"test\.tsv:7: field 'score': found 'high', expected a number.*never skipped",
    ),
    "a grade beyond 32 bits": (
        add("qrels/test.tsv", f"q2\td2\t{2**31}"),
        r"test\.tsv:7: field 'score': found '2147483648', .*at most",
    ),
    "an unknown query in a run": (
        run_file("x Q0 d1 1 3 t\n"),
        r"bm25\.test\.trec:1: field 'query': found 'x'",
    ),
    "an unknown document in a run": (
        run_file("q1 Q0 d1 1 3 t\nq1 Q0 x 2 2 t\n"),
        r"bm25\.test\.trec:2: field 'document': found 'x'",
    ),
    "a document twice in a run": (
        run_file("q1 Q0 d1 1 3 t\nq1 Q0 d1 2 2 t\n"),
        r"bm25\.test\.trec:2: .*a document once a query",
    ),
    "a score beyond float32": (
        run_file("q1 Q0 d1 1 1e300 t\n"),
        r"bm25\.test\.trec:1: field 'score': .*at most",
    ),
    "broken gzip": (cut_gzip, r"corpus\.jsonl\.gz:\d+: the gzip stream is broken"),
    "gzip in name alone": (
        lambda folder: (folder / "queries.jsonl").rename(folder / "queries.jsonl.gz"),
        r"queries\.jsonl\.gz: is named \.gz and is not gzip",
    ),
}


@pytest.mark.parametrize(("change", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_gets_a_sentence(change, said, folder):
    change(folder)
    assert re.search(said, start(folder)), start(folder)


def test_settings_that_name_nothing(folder, tmp_path):
    assert "--config.data.path wants a folder" in start(tmp_path / "nowhere")
    log = tmp_path / "nowhere.tsv"
    assert "no such file" in start(folder, f"--config.data.click_log={log}")
    for pattern in ("runs/{x}", "runs/{", "/runs/*"):
        said = start(folder, f"--config.data.runs={pattern}")
        assert "write it like runs/*.{split}.*" in said
    said = start(folder, "--config.text.teacher_tokenizer=nowhere")
    assert "nowhere: no such folder" in said


def test_what_is_odd_but_sound_is_prepared(sound, tmp_path):
    data = config.Data(path=str(sound), candidates=4)
    text = config.Text(teacher_length=40, student_length=32)
    prepared = prepare(data, text, tmp_path)
    corpus = list(prepared.corpus())
    assert {one.id: (one.title, one.text) for one in corpus} == {
        name: (title, text.strip()) for name, (title, text) in DOCUMENTS.items()
    }
    # Test keeps the query without a candidate, which counts as 0; train adds to it the
    # relevant document that the first stage has missed.
    found = {one.query_id: len(one.documents) for one in prepared.lists("test")}
    assert found["none"] == 0 and found["one"] == 1 and len(found) == 5
    train = {one.query_id: one for one in prepared.lists("train")}
    assert [corpus[row].id for row in train["missed"].documents] == ["d4"]
    assert train.keys().isdisjoint(found)  # held-out queries are not trained on
    for role, length in (("teacher", 40), ("student", 32)):
        tokenizer = prepared.tokenizer(role)
        documents = tokenizer.documents(corpus)
        for query in tokenizer.queries(list(QUERIES.values())):
            for document in documents:
                segment = tokenizer.segment(query, document, length)
                assert len(segment.tokens) <= length
                assert segment.tokens[: len(query)] == query  # never cut
