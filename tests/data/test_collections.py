import json
import pathlib

import pytest
from loaded import load

from ranker import config
from ranker.data.collections import Collection, file_names
from ranker.data.ranked import SplitCounts, choose_members, some
from ranker.errors import ConfigError, DataError

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def folder(tmp_path):
    documents = [("d1", "cats", "about cats"), ("d2", "dogs", "about dogs")]
    documents += [("d3", "both", "cats and dogs"), ("d4", "fish", "fish swim")]
    queries = {
        "q1": "cats",
        "q2": "dogs",
        "q3": "cats dogs",
        "q4": "zebra",
        "q5": "fish",
    }
    lines = [json.dumps({"_id": i, "title": t, "text": x}) for i, t, x in documents]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    lines = [json.dumps({"_id": i, "text": x}) for i, x in queries.items()]
    (tmp_path / "queries.jsonl").write_text("\n".join(lines))
    (tmp_path / "qrels").mkdir()
    head = "query-id\tcorpus-id\tscore\n"
    (tmp_path / "qrels" / "train.tsv").write_text(f"{head}q1\td1\t2\nq1\td4\t1\n")
    (tmp_path / "qrels" / "test.tsv").write_text(f"{head}q2\td2\t1\nq4\td1\t1\n")
    return tmp_path


def test_bm25_stands_in_for_missing_runs(folder):
    loaded = load(folder)
    assert {split: len(lists) for split, lists in loaded.lists.items()} == {
        "train": 1,
        "unlabelled": 2,  # q3 and q5, which nobody judged
        "dev": 0,
        "test": 2,
    }
    train = loaded.lists["train"][0]
    # d4 is relevant, and BM25 does not find it: it is added in train.
    assert train.documents.tolist() == [0, 2, 3] and train.labels.tolist() == [2, 0, 1]
    found, lost = loaded.lists["test"]
    assert found.judged_ids == ("d2",) and found.labels.tolist()[0] == 1
    # A test query without a candidate stays, and will count as 0.
    assert lost.query_id == "q4" and len(lost.documents) == 0
    assert lost.judged_ids == ("d1",)
    assert loaded.report["clicks"]["rows"] == 2  # the positives of train
    click = loaded.clicks["train"] + loaded.clicks["dev"]
    assert {(one.query, one.title) for one in click} == {
        ("cats", "cats"),
        ("cats", "fish"),
    }


def test_candidates_from_a_run_file(folder):
    (folder / "runs").mkdir()
    run = folder / "runs" / "first.test.trec"
    lines = "q2 Q0 d1 2 5 x\nq2 Q0 d3 1 7 x\nq2 Q0 d2 3 1 x\n"
    run.write_text(f"{lines}q4 Q0 d1 1 1 x\n")
    loaded = load(folder, candidates=2)
    assert loaded.lists["test"][0].documents.tolist() == [2, 0]  # by score; d2 is cut
    assert loaded.report["splits"]["test"]["candidate_recall"] == 0.5
    run.write_text(lines)
    loaded = load(folder, candidates=3)
    assert loaded.lists["test"][1].documents.tolist() == []  # q4 is not in the run
    with pytest.raises(DataError, match=r"first.test.trec.* none of its 2 relevant"):
        load(folder, candidates=2)
    run.write_text("q2 Q0 d9 1 7 x\n")
    with pytest.raises(DataError, match=r"first.test.trec:1: .*'d9'"):
        load(folder)
    (folder / "runs" / "other.test.trec").write_text("")
    with pytest.raises(DataError, match=r"2 run files match.*--config.data.runs"):
        load(folder)
    assert load(folder, runs="").lists["test"][0].documents.tolist() == [1, 2]


def test_a_query_with_one_candidate(folder):
    loaded = load(folder, candidates=1)
    assert len(loaded.lists["test"][0].documents) == 1


def test_labelled_queries_makes_the_rest_unlabelled(folder):
    head = "query-id\tcorpus-id\tscore\n"
    path = folder / "qrels" / "train.tsv"
    path.write_text(f"{head}q1\td1\t2\nq3\td3\t1\nq5\td4\t1\n")
    loaded = load(folder, labelled_queries=1)
    assert len(loaded.lists["train"]) == 1 and len(loaded.lists["unlabelled"]) == 2
    assert all(not one.labels.any() for one in loaded.lists["unlabelled"])
    assert all(not one.judged_ids for one in loaded.lists["unlabelled"])


def test_train_lists_gain_relevant_documents_alone(folder):
    """A judgement of 0 says that a document is known, not that it is to be added."""
    path = folder / "qrels" / "train.tsv"
    path.write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td4\t0\n")
    [train] = load(folder).lists["train"]
    assert train.documents.tolist() == [0, 2]  # what BM25 finds of "cats"
    assert train.judged_ids == ("d1", "d4")


def test_grades_below_0_are_labels_of_0(folder):
    head = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels" / "train.tsv").write_text(f"{head}q1\td1\t2\nq1\td3\t-1\n")
    (folder / "qrels" / "test.tsv").write_text(f"{head}q2\td2\t1\nq2\td3\t-2\n")
    lists = load(folder).lists
    [train], [test] = lists["train"], lists["test"]
    assert train.documents.tolist() == [0, 2] and train.labels.tolist() == [2, 0]
    assert test.documents.tolist() == [1, 2] and test.labels.tolist() == [1, 0]
    # Measures see what the judge wrote.
    assert train.judged_grades.tolist() == [2, -1]
    assert test.judged_grades.tolist() == [1, -2]


def test_unlabelled_queries_of_train_take_its_run(folder):
    head = "query-id\tcorpus-id\tscore\n"
    lines = "q1\td1\t2\nq2\td2\t1\nq3\td3\t1\n"
    (folder / "qrels" / "train.tsv").write_text(head + lines)
    (folder / "qrels" / "test.tsv").write_text(f"{head}q5\td4\t1\n")
    (folder / "runs").mkdir()
    # No order that BM25 would give: d4 is about fish.
    run = [f"{q} Q0 d4 1 9 x\n{q} Q0 d2 2 5 x\n" for q in ("q1", "q2", "q3")]
    (folder / "runs" / "first.train.trec").write_text("".join(run))
    loaded = load(folder, labelled_queries=1)
    [train] = loaded.lists["train"]
    assert train.documents.tolist()[:2] == [3, 1]
    found = {one.query_id: one.documents.tolist() for one in loaded.lists["unlabelled"]}
    # q4 has no judgement and is not in the run: BM25 looks for it, and finds none.
    assert found == {q: [3, 1] for q in {"q1", "q2", "q3"} - {train.query_id}}


def test_max_queries(folder):
    loaded = load(folder, max_queries=1)
    assert len(loaded.lists["test"]) == 1 and len(loaded.lists["unlabelled"]) == 1


def test_a_click_log_in_place_of_positives(folder):
    log = folder / "log.jsonl"
    log.write_text('{"query": "birds", "title": "Birds", "summary": "they fly"}\n')
    loaded = load(folder, click_log=str(log))
    assert [one.query for one in loaded.clicks["train"] + loaded.clicks["dev"]] == [
        "birds"
    ]


def test_folders_that_cannot_be_used(folder, tmp_path_factory):
    with pytest.raises(DataError, match="--config.data.path"):
        load(folder / "nowhere")
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "live_test.tsv")
    with pytest.raises(DataError, match=r"no test.tsv.*live_test.tsv, train.tsv"):
        load(folder)
    with pytest.raises(DataError, match=r"corpus.jsonl: no such file"):
        load(tmp_path_factory.mktemp("empty"))


def test_unknown_ids_can_be_skipped_and_counted(folder):
    path = folder / "qrels" / "train.tsv"
    path.write_text(path.read_text() + "q9\td1\t1\n")
    with pytest.raises(DataError, match=r"train.tsv:4: field 'query-id': found 'q9'"):
        load(folder)
    with pytest.raises(DataError, match=r"train.tsv: 1 of 3 .*max_skipped 0.01"):
        load(folder, on_error="skip")
    loaded = load(folder, on_error="skip", max_skipped=0.4)
    assert loaded.report["dropped"]["train.tsv"]["records"] == 1


@pytest.mark.skipif(not SHARED.is_dir(), reason="real data is not beside the checkout")
@pytest.mark.parametrize(
    ("name", "on_error"),
    [("nqqed", "stop"), ("cranfield", "skip")],  # Cranfield has two empty documents
)
def test_real_folders(name, on_error):
    loaded = load(SHARED / name, on_error=on_error, max_queries=50, candidates=20)
    assert len(loaded.lists["test"]) == 50
    assert sum(one.labels.any() for one in loaded.lists["test"]) > 25
    assert ("corpus.jsonl.gz" in loaded.report["dropped"]) == (on_error == "skip")


def test_the_held_out_split_can_have_another_name(folder):
    qrels = folder / "qrels"
    (qrels / "test.tsv").rename(qrels / "live.tsv")
    with pytest.raises(
        DataError, match=r"no test\.tsv.*live\.tsv.*--config\.data\.test"
    ):
        load(folder)
    loaded = load(folder, test="live")
    assert [one.query_id for one in loaded.lists["test"]] == ["q2", "q4"]


def test_queries_of_further_qrels_are_not_unlabelled(folder):
    (folder / "qrels" / "other.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq3\td1\t1\n"
    )
    loaded = load(folder)
    assert [one.query_id for one in loaded.lists["unlabelled"]] == ["q5"]


def test_dev_held_out_is_not_dev_too(folder):
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq3\td1\t1\n")
    loaded = load(folder, test="dev")
    assert [one.query_id for one in loaded.lists["test"]] == ["q3"]
    assert not loaded.lists["dev"]
    assert [one.query_id for one in loaded.lists["unlabelled"]] == ["q5"]


def test_negatives_of_a_window_of_ranks_and_at_random(folder):
    (folder / "runs").mkdir()
    lines = [f"q1 Q0 d{i} {i} {9 - i} x\n" for i in (2, 3, 1)]
    (folder / "runs" / "first.train.trec").write_text("".join(lines))
    # d1, d2, d3 by score; d1 and d4 are relevant, d4 was missed.
    loaded = load(folder, negatives=config.Negatives(first=2))
    [train] = loaded.lists["train"]
    assert train.documents.tolist() == [0, 2, 3]
    assert train.judged.tolist() == [True, False, True]
    assert loaded.report["negatives"] == {"outside_the_window": 1, "drawn_at_random": 0}
    loaded = load(folder, negatives=config.Negatives(last=2, random=9))
    [train] = loaded.lists["train"]
    assert train.documents.tolist() == [0, 1, 3, 2]  # d3 was cut, and drawn again
    assert loaded.report["negatives"] == {"outside_the_window": 1, "drawn_at_random": 1}
    again = load(folder, negatives=config.Negatives(last=2, random=9)).lists["train"][0]
    assert again.documents.tolist() == train.documents.tolist()
    with pytest.raises(ConfigError, match="ranks after 5 up to 3, which are none"):
        config.Negatives(first=5, last=3)


def test_negatives_of_several_sources_are_mixed(folder):
    (folder / "runs").mkdir()
    (folder / "runs" / "first.train.trec").write_text("q1 Q0 d2 1 9 x\n")
    lines = [f"q1 Q0 d{i} {i} {9 - i} x\n" for i in (2, 3, 4, 1)]
    (folder / "runs" / "dense.txt").write_text("".join(lines))
    one = config.Negatives(sources=("runs/dense.*",))
    loaded = load(folder, negatives=one)
    [train] = loaded.lists["train"]
    assert sorted(train.documents.tolist()) == [0, 1, 2, 3]
    assert train.documents[0] == 1 and train.first_stage.argmax() == 0
    assert loaded.report["negatives"]["from dense.txt"] == 3
    one = config.Negatives(sources=("runs/dense.*", "bm25"), each=1, first=1)
    loaded = load(folder, negatives=one)
    found = loaded.report["negatives"]
    assert found["from dense.txt"] == 1 and found["from bm25"] <= 1
    with pytest.raises(DataError, match=r"no file matches; .*first\.train\.trec"):
        load(folder, negatives=config.Negatives(sources=("runs/none.*",)))
    with pytest.raises(ConfigError, match="sources names none"):
        config.Negatives(each=3)


# --- who is in which split ---


def test_held_out_queries_leave_the_others_by_id_and_by_text():
    queries = {
        **{"a": "Red  Lamp", "b": "red lamp", "c": "kettle", "d": "ladder"},
        **{"e": "RED LAMP", "f": "pillow", "g": "chair", "h": "Chair "},
    }
    qrels = {
        "train": {"a": {"x": 1}, "c": {"x": 1}, "d": {"x": 1}},
        "dev": {"c": {"x": 1}},
        "test": {"b": {"x": 1}},
    }
    collection = Collection(
        lambda seen: iter(()), queries, qrels, further={"g", "no query of the file"}
    )
    found = choose_members(collection, config.Data(path="x"))
    assert found.names == {
        "train": ["d"],
        "unlabelled": ["f"],
        "dev": ["c"],
        "test": ["b"],
    }
    assert found.leaks == {
        "train": {"by_id": 1, "by_text": 1},
        "unlabelled": {"by_id": 0, "by_text": 2},
    }
    assert found.held_out == {"red lamp", "kettle", "chair"}


def test_queries_are_chosen_whatever_their_order():
    names = [f"q{n}" for n in range(20)]
    assert some(names, 7) == some(names[::-1], 7) and len(some(names, 7)) == 7
    assert some(names[:10], 3) != some(names[10:], 3)
    assert some(names, 0) == some(names, 99) == set(names)


def test_a_split_of_another_name_takes_the_place_of_test():
    assert file_names(config.Data(path="x")) == {
        "train": "train",
        "dev": "dev",
        "test": "test",
    }
    assert file_names(config.Data(path="x", test="dev")) == {
        "train": "train",
        "test": "dev",
    }


def test_recall_is_of_queries_that_have_something_relevant():
    assert SplitCounts().report()["candidate_recall"] is None
    counts = SplitCounts(queries=9, with_relevant=4, recalls=1.0, grades={2: 1, 0: 3})
    assert counts.report()["candidate_recall"] == 0.25
    assert [*counts.report()["grades"]] == [0, 2]


def test_counts_of_a_split_by_hand(folder):
    head = "query-id\tcorpus-id\tscore\n"
    rows = "q2\td2\t1\nq2\td3\t2\nq2\td9\t2\nq2\td1\t0\nq4\td1\t1\nq5\td4\t0\n"
    (folder / "qrels" / "test.tsv").write_text(head + rows)
    found = load(folder).report["splits"]["test"]
    # q2 finds d2 and d3 of three, q4 none of one, and nothing is relevant to q5.
    assert found["candidate_recall"] == pytest.approx((2 / 3 + 0) / 2)
    assert (found["judged"], found["relevant"]) == (6, 4)
    assert found["judged_without_text"] == 1
    assert found["grades"] == {0: 2, 1: 2, 2: 2}
    assert (found["queries"], found["candidates"]) == (3, 2 + 0 + 1)
    assert found["source"] == "BM25"


def test_train_queries_without_a_candidate_are_dropped_and_counted(folder):
    (folder / "qrels" / "train.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td1\t2\nq4\td9\t1\n"
    )
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq2\td2\t1\n"
    )
    loaded = load(folder)
    assert [one.query_id for one in loaded.lists["train"]] == ["q1"]
    found = loaded.report["splits"]["train"]
    assert found["dropped"] == {"no candidate": 1} and found["queries"] == 1
    assert not loaded.report["splits"]["test"]["dropped"]


@pytest.mark.parametrize("how", ["auto", "always", "never"])
def test_a_querys_own_document_is_left_out(folder, how):
    """Of the same id: in any case, or where its text is the same too."""
    queries = {"d1": "cats about cats", "d2": "cats", "q1": "fish"}
    (folder / "queries.jsonl").write_text(
        "\n".join(json.dumps({"_id": i, "text": x}) for i, x in queries.items())
    )
    head = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels" / "train.tsv").write_text(f"{head}q1\td4\t1\n")
    (folder / "qrels" / "test.tsv").write_text(f"{head}d1\td3\t1\nd2\td1\t1\n")
    (folder / "runs").mkdir()
    run = [f"{q} Q0 d{i} {i} {9 - i} x\n" for q in ("d1", "d2") for i in (1, 2, 3)]
    (folder / "runs" / "first.test.trec").write_text("".join(run))
    loaded = load(folder, ignore_identical_ids=how, candidates=2)
    found = [one.documents.tolist() for one in loaded.lists["test"]]
    assert (
        found
        == {
            "auto": [[1, 2], [0, 1]],
            "always": [[1, 2], [0, 2]],
            "never": [[0, 1], [0, 1]],
        }[how]
    )
    # BM25 is asked for one more.
    loaded = load(folder, ignore_identical_ids=how, candidates=1, runs="")
    found = [one.documents.tolist() for one in loaded.lists["test"]]
    assert found == ([[2], [0]] if how != "never" else [[0], [0]])


@pytest.mark.parametrize(
    ("run", "judged", "cause"),
    [
        ("q4 Q0 d2 1 1 x\n", "d1", "are its ids those of another corpus"),
        ("q1 Q0 d2 1 1 x\n", "d1", "the file names no candidate of its queries"),
        ("q4 Q0 d2 1 1 x\n", "d9", "none of the judged documents is in the corpus"),
        (None, "d1", "BM25 finds none: is the corpus in another language"),
    ],
)
def test_why_no_candidate_is_relevant(folder, run, judged, cause):
    (folder / "qrels" / "test.tsv").write_text(
        f"query-id\tcorpus-id\tscore\nq4\t{judged}\t1\n"
    )
    if run:
        (folder / "runs").mkdir()
        (folder / "runs" / "first.test.trec").write_text(run)
    with pytest.raises(DataError, match=f"hold none of its 1 relevant .*: {cause}"):
        load(folder)
    # A sample may miss all by chance.
    with (folder / "qrels" / "test.tsv").open("a") as file:
        file.write(f"q5\t{judged}\t1\n")
    assert len(load(folder, max_queries=1).lists["test"]) == 1


def test_documents_that_are_not_relevant_are_no_clicks(folder):
    (folder / "qrels" / "train.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq1\td9\t1\nq3\td3\t1\n"
    )
    loaded = load(folder, labelled_queries=1)
    found = loaded.clicks["train"] + loaded.clicks["dev"]
    # Of both queries, though the grades of one alone may be used.
    assert {(one.query, one.title, one.summary) for one in found} == {
        ("cats", "cats", "about cats"),
        ("cats dogs", "both", "cats and dogs"),
    }


def test_documents_drawn_at_random_are_new_and_no_more_than_there_are(folder):
    [train] = load(folder, negatives=config.Negatives(random=1)).lists["train"]
    # BM25 finds d1 and d3, d4 is relevant: d2 remains.
    assert train.documents.tolist() == [0, 2, 3, 1]
    assert train.first_stage[2:].tolist() == [train.first_stage[:2].min()] * 2
    assert train.judged.tolist() == [True, False, True, False]


def test_a_message_lists_twelve_names(tmp_path):
    for n in range(13):
        (tmp_path / f"notes{n:02d}.md").write_text("hello")
    with pytest.raises(DataError, match="has notes00.md, .*notes11.md; documents are"):
        load(tmp_path)
