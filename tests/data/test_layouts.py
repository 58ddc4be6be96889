"""Layouts of collections, and random BEIR folders against a naive reading."""

import gzip
import json
import pathlib
import tempfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loaded import load

from ranker.errors import ConfigError, DataError

TEXTS = {"1": "red lamp", "2": "blue kettle", "3": "green ladder", "4": "old pillow"}
ASKED = {"11": "lamp", "12": "kettle", "13": "ladder", "14": "pillow"}


def tsv(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


def parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def sizes(loaded):
    return {split: len(lists) for split, lists in loaded.lists.items()}


def test_ms_marco(tmp_path):
    path = tsv(tmp_path / "collection.tsv", *TEXTS.items())
    path.with_suffix(".tsv.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    tsv(tmp_path / "queries.train.tsv", *list(ASKED.items())[:2])
    tsv(tmp_path / "queries.dev.tsv", *list(ASKED.items())[2:])
    tsv(tmp_path / "queries.dev.small.tsv", *list(ASKED.items())[3:])  # again
    tsv(tmp_path / "qrels.train.tsv", (11, 0, 1, 1), (12, 0, 2, 1))
    tsv(tmp_path / "qrels.dev.tsv", (13, 0, 3, 1), (14, 0, 9, 1))
    texts = [(13, place, "ladder", TEXTS[str(place)]) for place in (3, 1)]
    tsv(tmp_path / "top1000.dev", *texts)
    loaded = load(tmp_path, test="dev")
    assert sizes(loaded) == {"train": 2, "unlabelled": 0, "dev": 0, "test": 2}
    assert loaded.lists["test"][0].documents.tolist() == [2, 0]  # as they are listed
    test = loaded.report["splits"]["test"]
    assert test["judged_without_text"] == 1 and test["candidate_recall"] == 0.5
    tsv(tmp_path / "queries.dev.small.tsv", (14, "another text"))
    with pytest.raises(DataError, match=r"queries\.dev.*tsv: the query '14' has two"):
        load(tmp_path, test="dev")


def test_parquet_folders(tmp_path):
    for part, names in enumerate((["1", "2"], ["3", "4"])):
        texts = [TEXTS[name] for name in names]
        path = tmp_path / "corpus" / f"corpus-0000{part}-of-00002.parquet"
        parquet(path, _id=names, title=["", ""], text=texts)
    path = tmp_path / "queries" / "queries-00000-of-00001.parquet"
    parquet(path, _id=list(ASKED), text=list(ASKED.values()))
    judged = {"query-id": ["13", "14"], "corpus-id": ["3", "4"], "score": [1, 2]}
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", **judged)
    loaded = load(tmp_path)
    assert sizes(loaded) == {"train": 0, "unlabelled": 2, "dev": 0, "test": 2}
    assert loaded.report["splits"]["test"]["candidate_recall"] == 1.0
    assert "no query of train is judged" in loaded.report["notes"][0]


@pytest.mark.parametrize("kind", ["pass", "doc"])
def test_ms_marco_as_it_was_named_later(kind, tmp_path):
    long = {"pass": "passage", "doc": "doc"}[kind]
    field, name = ("passage", "pid") if kind == "pass" else ("body", "docid")
    folder = tmp_path / f"msmarco_v2_{long}"
    folder.mkdir()
    for part, names in enumerate((["1", "2"], ["3", "4"])):
        found = [{"docid": "D", name: one, field: TEXTS[one]} for one in names]
        text = "".join(json.dumps(one) + "\n" for one in found)
        place = folder / f"msmarco_{long}_0{part}.gz"
        place.write_bytes(gzip.compress(text.encode()))
    for split, asked in (("train", "11"), ("dev", "13"), ("dev2", "14")):
        tsv(tmp_path / f"{kind}v2_{split}_queries.tsv", (asked, ASKED[asked]))
        judged = (asked, 0, int(asked) - 10, 1)
        tsv(tmp_path / f"{kind}v2_{split}_qrels.tsv", judged)
    loaded = load(tmp_path, test="dev")
    assert sizes(loaded) == {"train": 1, "unlabelled": 0, "dev": 0, "test": 1}
    assert loaded.report["splits"]["test"]["candidate_recall"] == 1.0


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    tsv(tmp_path / "queries.tsv", *ASKED.items())
    (tmp_path / "corpus.jsonl").symlink_to(tmp_path / "moved.jsonl")
    with pytest.raises(DataError, match=r"corpus\.jsonl is a link to .*moved\.jsonl"):
        load(tmp_path)


def test_candidates_of_mteb(tmp_path):
    parquet(
        tmp_path / "corpus" / "test.parquet", _id=list(TEXTS), text=[*TEXTS.values()]
    )
    parquet(
        tmp_path / "queries" / "test.parquet", _id=list(ASKED), text=[*ASKED.values()]
    )
    judged = {"query-id": ["13", "14"], "corpus-id": ["3", "4"], "score": [1, 1]}
    parquet(tmp_path / "qrels" / "test-00000-of-00001.parquet", **judged)
    place = tmp_path / "top_ranked" / "test-00000-of-00001.parquet"
    ranked = {"query-id": ["13", "14"], "corpus-ids": [["1", "3", "1"], ["2"]]}
    parquet(place, **ranked)
    loaded = load(tmp_path)
    lists = {one.query_id: one.documents.tolist() for one in loaded.lists["test"]}
    assert lists == {"13": [0, 2], "14": [1]}  # the order of the file, each once
    assert loaded.report["splits"]["test"]["candidate_recall"] == 0.5
    parquet(place, **{"query-id": ["13"], "corpus-ids": [["nowhere"]]})
    with pytest.raises(DataError, match=r"00001\.parquet:1: .*'corpus-ids'.*'nowhere'"):
        load(tmp_path)
    parquet(place, **{"query-id": ["13"], "corpus-ids": ["3"]})
    with pytest.raises(DataError, match="a list of ids, best first"):
        load(tmp_path)


def test_names_of_ir_datasets(monkeypatch):
    import ir_datasets
    from ir_datasets.formats import GenericDoc, GenericQuery, TrecQrel

    class Part:
        def __init__(self, judged):
            self.judged = judged

        has_docs = has_queries = has_qrels = lambda self: True
        docs_iter = lambda self: [GenericDoc(*one) for one in TEXTS.items()]  # noqa: E731
        queries_iter = lambda self: [  # noqa: E731
            GenericQuery(name, ASKED[name]) for name, _ in self.judged
        ]
        qrels_iter = lambda self: [TrecQrel(*one, 1, "0") for one in self.judged]  # noqa: E731

    parts = {"c/train": Part([("11", "1")]), "c/test": Part([("13", "3"), ("14", "4")])}
    monkeypatch.setattr(ir_datasets, "load", parts.__getitem__)
    assert sizes(load("irds:c/test"))["test"] == 2
    assert sizes(load("irds:train=c/train,test=c/test"))["train"] == 1
    with pytest.raises(DataError, match="irds:c/none: ir_datasets cannot load it"):
        load("irds:c/none")
    with pytest.raises(ConfigError, match="it takes irds:NAME"):
        load("irds:all=c/test")


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "notes.txt").write_text("hello\n")
    with pytest.raises(DataError, match=r"corpus\.jsonl: no such file.*has notes\.txt"):
        load(tmp_path)


# Documents, and a query for each.
LANGUAGES = {
    "Chinese": (
        ["苹果手机电池更换价格", "北京明天的天气预报", "红烧肉的家常做法"],
        ["手机电池多少钱", "北京天气怎么样", "红烧肉怎么做"],
    ),
    "Japanese": (
        ["東京の天気予報", "ラーメンの作り方", "新幹線の時刻表"],
        ["東京は雨の天気か", "おいしいラーメン", "新幹線は何時"],
    ),
    "Thai": (
        ["ร้านอาหารในกรุงเทพ", "ตารางรถไฟเชียงใหม่", "วิธีทำแกงเขียวหวาน"],
        ["อาหารกรุงเทพ", "รถไฟไปเชียงใหม่", "แกงเขียวหวานทำอย่างไร"],
    ),
    "Hindi": (
        ["दिल्ली का मौसम", "रेल टिकट की कीमत", "हिन्दी व्याकरण"],
        ["मौसम दिल्ली", "टिकट कीमत", "व्याकरण हिन्दी में"],
    ),
}


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_right_document_comes_first_in_any_language(name, tmp_path):
    documents, queries = LANGUAGES[name]
    corpus = [{"_id": f"d{i}", "text": text} for i, text in enumerate(documents)]
    asked = [{"_id": f"q{i}", "text": text} for i, text in enumerate(queries)]
    for file, rows in (("corpus", corpus), ("queries", asked)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / f"{file}.jsonl").write_text(text, encoding="utf-8")
    pairs = [(f"q{i}", f"d{i}", 1) for i in range(len(queries))]
    tsv(tmp_path / "qrels" / "test.tsv", ("query-id", "corpus-id", "score"), *pairs)
    loaded = load(tmp_path, candidates=1)
    found = [one.documents.tolist() for one in loaded.lists["test"]]
    assert found == [[0], [1], [2]]


# --- random folders ---

names = st.sampled_from("abcdefgh")
judged = st.lists(st.tuples(names, st.sampled_from("stuvwxyz!"), st.integers(-1, 3)))
QUERIES = {name: f"word{i} common" for i, name in enumerate("abcdefgh")}


def write_beir(folder, corpus, splits):
    lines = [
        json.dumps({"_id": name, "title": "", "text": text}) for name, text in corpus
    ]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    lines = [json.dumps({"_id": name, "text": text}) for name, text in QUERIES.items()]
    (folder / "queries.jsonl").write_text("\n".join(lines))
    for split, pairs in splits.items():
        head = ("query-id", "corpus-id", "score")
        tsv(folder / "qrels" / f"{split}.tsv", head, *pairs)


def naive(splits):
    """Queries of each split, and grades of each: what the words of the docs say."""
    held = {query for split in ("dev", "test") for query, _, _ in splits[split]}
    found = {}
    for split, pairs in splits.items():
        grades = {}
        for query, document, grade in pairs:
            if split != "train" or query not in held:
                grades.setdefault(query, {})[document] = grade
        found[split] = grades
    judged = {query for pairs in splits.values() for query, _, _ in pairs}
    found["unlabelled"] = {name: {} for name in QUERIES if name not in judged}
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.permutations("stuvwxyz"),
    st.dictionaries(st.tuples(names, st.sampled_from("stuvwxyz!")), st.integers(-1, 3)),
    st.dictionaries(st.tuples(names, st.sampled_from("stuvwxyz!")), st.integers(-1, 3)),
    st.dictionaries(
        st.tuples(names, st.sampled_from("stuvwxyz!")), st.integers(-1, 3), min_size=1
    ),
)
def test_random_folders_are_what_a_naive_reading_finds(order, train, dev, test):
    splits = {
        split: [(*pair, grade) for pair, grade in pairs.items()]
        for split, pairs in (("train", train), ("dev", dev), ("test", test))
    }
    # Every document has the common word, so all are candidates of every query.
    corpus = [(name, f"common {name}") for name in order]
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        write_beir(folder, corpus, splits)
        expected = naive(splits)
        try:
            loaded = load(folder, max_queries=0)
        except DataError as error:
            # Only where nothing that is relevant has a text.
            assert "none of its" in str(error)
            for split in ("dev", "test"):
                relevant = [d for _, d, grade in splits[split] if grade > 0]
                if relevant and set(relevant) == {"!"}:
                    return
            raise
    rows = {name: row for row, (name, _) in enumerate(corpus)}
    for split, grades in expected.items():
        lists = {one.query_id: one for one in loaded.lists[split]}
        assert lists.keys() == grades.keys(), split
        for name, one in lists.items():
            assert set(one.documents.tolist()) == set(rows.values())
            found = dict(zip(one.judged_ids, one.judged_grades.tolist(), strict=True))
            assert found == grades[name]
            for row, label, seen in zip(
                one.documents.tolist(), one.labels.tolist(), one.judged, strict=True
            ):
                document = corpus[row][0]
                assert label == max(0, grades[name].get(document, 0))
                assert seen == (document in grades[name])


# --- the same collection, as other people keep it ---


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def collection(folder):
    """TEXTS and ASKED in BEIR's form, 11 and 12 in train, 13 in dev and 14 in test."""
    lines(folder / "corpus.jsonl", ({"_id": k, "text": v} for k, v in TEXTS.items()))
    lines(folder / "queries.jsonl", ({"_id": k, "text": v} for k, v in ASKED.items()))
    for split, pairs in (
        ("train", [("11", "1"), ("12", "2")]),
        ("dev", [("13", "3")]),
        ("test", [("14", "4")]),
    ):
        rows = ((query, document, 1) for query, document in pairs)
        tsv(
            folder / "qrels" / f"{split}.tsv",
            ("query-id", "corpus-id", "score"),
            *rows,
        )


def zst(path):
    path.with_name(f"{path.name}.zst").write_bytes(
        pa.compress(path.read_bytes(), codec="zstd", asbytes=True)
    )
    path.unlink()


def as_csv(folder):
    (folder / "corpus.jsonl").unlink()
    (folder / "queries.jsonl").unlink()
    cells = "".join(f'{k},"","{v}, ""used"""\n' for k, v in TEXTS.items())
    (folder / "corpus.csv").write_text(f"_id,title,text\n{cells}")
    cells = "".join(f'{k},"{v},\nplease"\n' for k, v in ASKED.items())
    (folder / "queries.csv").write_text(f"qid,query\n{cells}")


def as_tsv(folder):
    (folder / "corpus.jsonl").unlink()
    tsv(folder / "corpus.tsv", ("DocID", "Text"), *TEXTS.items())


def as_zst(folder):
    for name in ("corpus.jsonl", "queries.jsonl"):
        zst(folder / name)


def as_mixed_parts(folder):
    (folder / "corpus.jsonl").unlink()
    rows = [{"_id": k, "text": v} for k, v in TEXTS.items()]
    lines(folder / "corpus" / "a.jsonl", rows[:1])
    zst(folder / "corpus" / "a.jsonl")
    lines(folder / "corpus" / "b.jsonl", rows[1:2])
    ids = list(map(float, list(TEXTS)[2:]))  # of a table that once had a missing id
    parquet(folder / "corpus" / "c.parquet", _id=ids, text=list(TEXTS.values())[2:])
    for other in ("_SUCCESS", ".b.crc", "README.md"):
        (folder / "corpus" / other).write_text("nothing")


def with_quoted_judgements(folder):
    for path in (folder / "qrels").iterdir():
        rows = [line.split("\t") for line in path.read_text().splitlines()]
        text = "".join('"{}"\t"{}"\t"{}"\n'.format(*row) for row in rows)
        path.write_text(text)


def with_default_judgements(folder):
    for path in list((folder / "qrels").iterdir()):
        rows = [line.split("\t") for line in path.read_text().splitlines()]
        columns = dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True))
        columns["score"] = list(map(float, columns["score"]))
        name = f"{path.stem}-00000-of-00001.parquet"
        parquet(folder / "default" / name, **columns)
        path.unlink()
    (folder / "qrels").rmdir()


@pytest.mark.parametrize(
    "change",
    [
        as_csv,
        as_tsv,
        as_zst,
        as_mixed_parts,
        with_quoted_judgements,
        with_default_judgements,
    ],
)
def test_other_forms_hold_the_same(change, tmp_path):
    collection(tmp_path)
    expected = load(tmp_path)
    change(tmp_path)
    found = load(tmp_path)
    assert [one.id for one in found.documents] == list(TEXTS)
    if change is not as_csv:
        assert found.documents == expected.documents
    for split, lists in expected.lists.items():
        assert [one.query_id for one in found.lists[split]] == [
            one.query_id for one in lists
        ]
        for one, other in zip(found.lists[split], lists, strict=True):
            assert one.documents.tolist() == other.documents.tolist()
            assert one.judged_ids == other.judged_ids


def test_a_broken_zst_file_is_refused(tmp_path):
    collection(tmp_path)
    zst(tmp_path / "corpus.jsonl")
    path = tmp_path / "corpus.jsonl.zst"
    whole = path.read_bytes()
    path.write_bytes(whole[:-6])
    with pytest.raises(DataError, match=r"corpus\.jsonl\.zst"):
        load(tmp_path)
    path.write_bytes(b"no")
    with pytest.raises(DataError, match="is named .zst and is not Zstandard"):
        load(tmp_path)
    path.write_bytes(pa.compress(b" " * 2**27, codec="zstd", asbytes=True))
    with pytest.raises(DataError, match="unpacks to over 200 times|over 16 MiB"):
        load(tmp_path)


def test_several_configs_of_one_data_set_are_named(tmp_path):
    for name in ("en", "de"):
        collection(tmp_path / name)
    with pytest.raises(DataError, match=r"collection in each of de, en; name one.*/de"):
        load(tmp_path)
    assert len(load(tmp_path / "en").documents) == len(TEXTS)


def test_lists_between_commas(tmp_path):
    cells = "".join(f'what {i},"text, {i}",other {i}\n' for i in range(30))
    (tmp_path / "train.csv").write_text(f"anchor,positive,negative\n{cells}")
    found = load(tmp_path)
    [one, *_] = found.lists["train"]
    assert sum(map(len, found.lists.values())) == 30 and len(one.documents) == 2
    assert "text, 3" in [document.text for document in found.documents]


# --- which reader, which files ---


@pytest.mark.parametrize(
    "place",
    [
        *("qrels/{}.txt", "qrels.{}.txt", "qrels.{}.tsv", "passv2_{}_qrels.tsv"),
        *("qrels/{}.jsonl", "data/{}.jsonl", "{}.jsonl", "qrels/{}.parquet"),
        *("default/{}-0.parquet", "{}.parquet", "docv2_{}_qrels.tsv.gz"),
    ],
)
def test_places_of_judgements(tmp_path, place):
    collection(tmp_path)
    for split, query, document in (("train", "11", "1"), ("test", "14", "4")):
        (tmp_path / "qrels" / f"{split}.tsv").unlink()
        path = tmp_path / place.format(split)
        path.parent.mkdir(exist_ok=True)
        row = {"query-id": query, "corpus-id": document, "score": 1}
        if path.suffix == ".parquet":
            parquet(path, **{name: [value] for name, value in row.items()})
        elif path.suffix == ".jsonl":
            lines(path, [row])
        else:
            text = f"{query} 0 {document} 1\n".replace(" ", "\t")
            packed = path.suffix == ".gz"
            path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    (tmp_path / "qrels" / "dev.tsv").unlink()
    loaded = load(tmp_path)
    assert [one.query_id for one in loaded.lists["test"]] == ["14"]
    assert [one.query_id for one in loaded.lists["train"]] == ["11"]
    assert sizes(loaded)["dev"] == 0


@pytest.mark.parametrize("name", ["qrels.more.tsv", "passv2_more_qrels.tsv"])
def test_queries_of_other_splits_are_held_out_wherever_they_are_judged(tmp_path, name):
    collection(tmp_path)
    lines(
        tmp_path / "queries.jsonl",
        ({"_id": k, "text": v} for k, v in {**ASKED, "15": "old", "16": "red"}.items()),
    )
    tsv(tmp_path / name, ("15", 0, "4", 1))
    loaded = load(tmp_path)
    assert [one.query_id for one in loaded.lists["unlabelled"]] == ["16"]


def test_held_out_judgements_are_never_skipped(tmp_path):
    collection(tmp_path)
    for split, refused in (("train", False), ("test", True)):
        path = tmp_path / "qrels" / f"{split}.tsv"
        before = path.read_text()
        path.write_text(f"{before}99\t1\t1\n")
        lenient = {"on_error": "skip", "max_skipped": 0.9}
        if refused:
            with pytest.raises(DataError, match="'99'.*held out are never skipped"):
                load(tmp_path, **lenient)
        else:
            assert load(tmp_path, **lenient).report["dropped"]["train.tsv"]
        path.write_text(before)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("/runs/*.{split}.*", "it is absolute"),
        ("runs/{part}.*", "'part'"),
        ("runs/{0}.*", "out of range"),
        ("runs/{split.x}", "no attribute 'x'"),
        ("runs/{split", "expected '}'"),
    ],
)
def test_patterns_of_runs_that_are_none(tmp_path, pattern, found):
    collection(tmp_path)
    with pytest.raises(DataError, match=f"data.runs .* is not a pattern .*{found}"):
        load(tmp_path, runs=pattern)


def test_candidates_that_come_with_ms_marco_stand_back_for_runs(tmp_path):
    collection(tmp_path)
    tsv(tmp_path / "top1000.test", ("14", "1", "pillow", TEXTS["1"]))
    tsv(tmp_path / "runs" / "own.test.trec")
    (tmp_path / "runs" / "own.test.trec").write_text("14 Q0 2 1 1 x\n")
    with pytest.raises(DataError, match="own.test.trec.* none of its 1 relevant"):
        load(tmp_path)
    (tmp_path / "runs" / "own.test.trec").unlink()
    with pytest.raises(DataError, match="top1000.test.* none of its 1 relevant"):
        load(tmp_path)
    # Without runs they are not read either.
    assert load(tmp_path, runs="").lists["test"][0].documents.tolist() == [3]


def test_parts_of_several_collections_are_named(tmp_path):
    for name in ("en", "de"):
        for part in ("corpus", "queries", "qrels"):
            (tmp_path / f"{name}-{part}").mkdir()
    with pytest.raises(DataError, match=r"several collections, de, en; .*corpus -> de"):
        load(tmp_path)


def test_a_reader_may_be_asked_for(tmp_path):
    """Else it is a collection where there is a corpus, and files of lists elsewhere."""
    collection(tmp_path)
    lines(
        tmp_path / "lists.jsonl",
        ({"query": f"what {i}", "pos": [f"a{i}"], "neg": ["b"]} for i in range(30)),
    )
    assert sizes(load(tmp_path))["test"] == 1
    assert len(load(tmp_path, format="collection").documents) == 4
    for path in (tmp_path / "lists.jsonl", tmp_path / "list*.jsonl"):
        assert sum(sizes(load(path)).values()) == 30
    only = tmp_path / "only"
    only.mkdir()
    (tmp_path / "lists.jsonl").rename(only / "lists.jsonl")
    assert sum(sizes(load(only)).values()) == 30
    with pytest.raises(DataError, match=r"corpus\.jsonl: no such file; .*lists\.jsonl"):
        load(only, format="collection")
    (tmp_path / "queries.jsonl").write_text("")
    with pytest.raises(DataError, match="has no query"):
        load(tmp_path)
    (tmp_path / "queries.jsonl").unlink()
    with pytest.raises(DataError, match=r"queries\.jsonl: no such file; .* has corpus"):
        load(tmp_path)
    # Of a folder with queries and no corpus nothing is taken for lists.
    (tmp_path / "corpus.jsonl").unlink()
    (tmp_path / "queries.tsv").write_text("11\tlamp\n")
    with pytest.raises(DataError, match=r"corpus\.jsonl: no such file"):
        load(tmp_path)


def test_lists_keep_the_order_of_their_documents(tmp_path):
    """As the first stage's, where it gives no scores."""
    folder = tmp_path / "lists"
    for split in ("train", "dev"):
        rows = [
            {"query": f"{split} {i}", "pos": ["b", "c"], "neg": ["a", "d"]}
            for i in range(3)
        ]
        lines(folder / f"{split}.jsonl", rows)
    loaded = load(folder, held_out=0.0)
    texts = [one.text for one in loaded.documents]
    for one in (*loaded.lists["train"], *loaded.lists["dev"]):
        assert [texts[row] for row in one.documents] == ["b", "c", "a", "d"]
        assert one.first_stage.tolist() == [0, -1, -2, -3]
    assert sizes(loaded) == {"train": 3, "unlabelled": 0, "dev": 3, "test": 0}
    # dev may be what is held out.
    assert sizes(load(folder, test="dev", held_out=0.0)) == {
        "train": 3,
        "unlabelled": 0,
        "dev": 0,
        "test": 3,
    }
    # A share of train's queries is held out where no file is, of each that is missing.
    found = sizes(load(folder / "train.jsonl", held_out=0.4))
    assert sum(found.values()) == 3 and found["test"] == found["dev"] == 1


def test_files_without_a_query_are_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises((DataError, ConfigError), match="no query with documents"):
        load(tmp_path / "train.jsonl")
