"""One reader of queries with their documents, for the formats of many trainers."""

import json

import pytest
from loaded import load

from ranker.data import formats, list_files
from ranker.data.list_files import merge_lists, named, read_lists, to_list
from ranker.errors import DataError, FieldError


def passages(*names):
    return [{"docid": one, "title": one, "text": f"about {one}"} for one in names]


a, b, c = named("a"), named("b"), named("c")
RECORDS = {
    "tevatron": (
        {
            "query_id": "1",
            "query": "q",
            "positive_passages": passages("a"),
            "negative_passages": passages("b", "c"),
        },
        {"a": 1, "b": 0, "c": 0},
        {},
    ),
    "FlagEmbedding": (
        {
            "query": "q",
            "pos": ["a"],
            "neg": ["b", "c"],
            "pos_scores": [4.5],
            "neg_scores": [1, -2.0],
            "prompt": "",
        },
        {a: 1, b: 0, c: 0},
        {a: 4.5, b: 1.0, c: -2.0},
    ),
    "triplet": (
        {"anchor": "q", "positive": "a", "negative_1": "b", "negative_2": "c"},
        {a: 1, b: 0, c: 0},
        {},
    ),
    "pair": ({"question": "q", "answer": "a"}, {a: 1}, {}),
    "labelled pair": (
        {"sentence1": "q", "sentence2": "a", "label": 1},
        {a: 1},
        {},
    ),
    "scored pair": ({"query": "q", "passage": "a", "score": 0.25}, {}, {a: 0.25}),
    "labelled list": (
        {"query": "q", "docs": ["a", "b"], "labels": [3, 0]},
        {a: 3, b: 0},
        {},
    ),
    "listed scores": (
        {"query": "q", "docs": ["a", "b"], "labels": [0.75, 0.5]},
        {},
        {a: 0.75, b: 0.5},
    ),
    "MTEB": ({"query": "q", "positive": ["a"], "negative": ["b"]}, {a: 1, b: 0}, {}),
    "DPR": (
        {
            "question": "q",
            "positive_ctxs": [{"title": "", "text": "a", "passage_id": "9"}],
            "hard_negative_ctxs": [{"title": "", "text": "b", "passage_id": "8"}],
        },
        {"9": 1, "8": 0},
        {},
    ),
    "messages": (
        {
            "messages": [
                {"role": "system", "content": "rank"},
                {"role": "user", "content": "q"},
            ],
            "positive_messages": [[{"role": "assistant", "content": "a"}]],
            "negative_messages": [
                [{"role": "assistant", "content": "b"}],
                [{"role": "assistant", "content": "c"}],
            ],
        },
        {a: 1, b: 0, c: 0},
        {},
    ),
    "responses": (
        {"query": "q", "response": "a", "rejected_response": ["b", "c"]},
        {a: 1, b: 0, c: 0},
        {},
    ),
    "margins": (
        {"query": "q", "positive": "a", "negative": "b", "score_diff": 2.5},
        {a: 1, b: 0},
        {a: 0.0, b: -2.5},
    ),
    "RankLLM": (
        {
            "query": {"qid": "7", "text": "q"},
            "candidates": [
                {"docid": "a", "score": 9.5, "doc": {"contents": "text a"}},
                {"docid": "b", "score": 3, "doc": "text b"},
            ],
        },
        {},
        {},
    ),
}


@pytest.mark.parametrize(("record", "grades", "teacher"), RECORDS.values(), ids=RECORDS)
def test_formats(record, grades, teacher):
    [one] = merge_lists(iter([to_list(json.dumps(record))])).values()
    assert one.text == "q"
    assert one.grades == grades and one.teacher == teacher
    assert set(one.documents) >= set(grades) | set(teacher)
    assert all(name == document.id for name, document in one.documents.items())


def test_first_stage_scores_of_candidates():
    one = to_list(RECORDS["RankLLM"][0])
    assert one.id == "7" and one.first_stage == {"a": 9.5, "b": 3.0}
    assert one.documents["a"].text == "text a"


def test_a_query_that_comes_again_is_one_list():
    first = to_list({"query": "q", "positive": "a", "negative": "b"})
    second = to_list({"query": "q", "positive": "b", "negative": "c"})
    [one] = merge_lists(iter([first, second])).values()
    assert one.grades == {a: 1, b: 1, c: 0}  # what is once a positive is one
    other = list_files.QueryList(one.id, "another text")
    with pytest.raises(DataError, match="two texts, 'q' and 'another text'"):
        merge_lists(iter([first, other]))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"query": "q", "pos": ["a"], "neg": [], "pos_scores": [1, 2]}, "one a doc"),
        ({"query": "q", "docs": ["a"], "labels": [1, 2]}, "1 numbers, one for each"),
        ({"query": "q", "positive_passage": []}, "nearest known format is tevatron"),
        ({"q": "q", "neg": [], "pos_scores": []}, "nearest .* FlagEmbedding's: query"),
        ({"query": "q", "pos": [3]}, "'document': found 3, expected a text"),
        ({"query": " ", "pos": ["a"]}, "'query'"),
        ([1], "one JSON object a line"),
    ],
)
def test_what_is_none_of_them(record, message):
    with pytest.raises(FieldError, match=message):
        to_list(json.dumps(record))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(*numbers):
    return [
        {"query": f"q {i}", "positive": f"d {i}", "negative": f"d {i + 1}"}
        for i in numbers
    ]


def test_splits_by_the_names_of_files_or_by_a_hash(tmp_path):
    one = load(write(tmp_path / "all.jsonl", rows(*range(30))))
    sizes = {split: len(lists) for split, lists in one.lists.items()}
    assert sizes == {"train": 24, "unlabelled": 0, "dev": 3, "test": 3}
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.jsonl", rows(0, 1, 2, 3))
    write(folder / "test-00000.jsonl", rows(3, 4))
    two = load(folder, held_out=0.0)
    # The query 3 is held out, so it leaves train.
    assert [len(two.lists[name]) for name in ("train", "dev", "test")] == [3, 0, 2]
    assert two.report["leaks"]["train"] == {"by_id": 1, "by_text": 0}
    assert two.report["splits"]["test"]["candidate_recall"] == 1.0


def test_a_json_array_and_triples_of_texts(tmp_path):
    path = tmp_path / "runs.json"
    path.write_text(json.dumps([RECORDS["RankLLM"][0]], indent=1))
    assert [one.id for one in read_lists(path)] == ["7"]
    path = tmp_path / "triples.train.small.tsv"
    path.write_text("q\ta\tb\nq\ta\tc\n")
    [one] = merge_lists(read_lists(path)).values()
    assert one.grades == {a: 1, b: 0, c: 0}


def test_scores_of_a_teacher_from_outside(tmp_path):
    lists = [
        {"query": f"q {i}", "pos": [f"d {i}"], "neg": ["x"], "pos_scores": [2.0]}
        | {"neg_scores": [-1.0 * i]}
        for i in range(9)
    ]
    data = write(tmp_path / "train.jsonl", lists)
    one = load(data, given_scores="data")
    assert one.report["teacher_scores"] == 18
    for record in one.lists["train"]:
        number = int(record.query.split()[1])
        assert record.teacher.tolist() == sorted([2.0, -number], reverse=True)
    assert not len(one.lists["test"][0].teacher)  # held-out queries teach nothing
    trained = one.lists["train"][0]
    scores = tmp_path / "scores.tsv"
    pair = f"{trained.query_id}\t{named('x')}"
    scores.write_text(f"query_id\tdocument_id\tscore\n{pair}\t0.5\n{pair[:3]}\ty\t1\n")
    one = load(data, given_scores=str(scores))
    [record] = one.lists["train"]
    assert record.teacher.tolist() == [0.5]
    report = one.report["given_scores"]
    assert report["queries_without_a_score"]["count"] == 6
    assert report["candidates_without_a_score"]["count"] == 1
    assert report["queries_not_used"]["first"] == [pair[:3]]
    scores.write_text(f"query_id\tdocument_id\tscore\n{pair}\tnan\n")
    with pytest.raises(
        DataError, match=rf"1 scores are not finite.*{trained.query_id}"
    ):
        load(data, given_scores=str(scores))


def test_given_scores_of_runs_and_tables(tmp_path):
    run = tmp_path / "a.trec"
    run.write_text("q Q0 d 1 9.5 t\nq Q0 e 2 -1e3 t\n")
    write(tmp_path / "b.jsonl", [{"query_id": "r", "document_id": 7, "score": 1}])
    scores, report = formats.read_given_scores(str(tmp_path))
    assert scores == {"q": {"d": 9.5, "e": -1000.0}, "r": {"7": 1.0}}
    assert report["not_finite"]["count"] == 0
    run.write_text("q Q0 d 1 9.5 t\nq Q0 d 2 1 t\n")
    with pytest.raises(DataError, match=r"a\.trec: .*'d' has two scores, 9.5 and 1.0"):
        formats.read_given_scores(str(run))
    run.write_text("q d 9.5\n")
    with pytest.raises(DataError, match=r"a\.trec:1: .*JSON lines or Parquet of query"):
        formats.read_given_scores(str(run))
