import pathlib
import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ranker import config
from ranker.data import click_engine, click_logs, clicks
from ranker.data.clicks import Digest, clicks_to_examples, in_dev
from ranker.data.datasets import click_batches
from ranker.data.records import Click, ClickExample
from ranker.errors import DataError

RULES = config.ClickRules(min_dwell=10, max_per_query=2, dev_fraction=0)


def examples(*rows, rules=RULES, **known):
    splits, counts = clicks_to_examples(rows, rules, **known)
    return splits["train"], counts


def test_each_rule_drops_and_counts():
    kept, counts = examples(
        Click("q", "a", "s"),
        Click("q", "b", "s", clicked=False),
        Click("q", "c", "s", dwell=9.9),
        Click("q", "d", "s", dwell=10.0),
        Click("q", "", ""),
        Click("q2", "", ""),
        Click("Held  out", "a", "s"),
        Click("held out", "b", "s"),
        Click("q", "", "", "nowhere"),
        held_out=frozenset({"held out"}),
    )
    assert [one.title for one in kept] == ["a", "d"]
    assert counts.rows == 9
    assert counts.dropped == {
        clicks.NOT_CLICKED: 1,
        clicks.SHORT: 1,
        clicks.EMPTY: 2,
        clicks.UNKNOWN: 1,
        clicks.CAPPED: 0,
    }
    assert (counts.held_out, counts.held_out_queries) == (2, 1)
    assert counts.examples == {"train": 2, "dev": 0}


def test_same_query_and_document_merge_and_add_counts():
    kept, counts = examples(
        Click("cheap flights", "other title", "s", "d1", count=3),
        Click("Cheap  flights", "A", "s", "d1"),
        Click("cheap flights", "a", " S "),
        Click("cheap flights", "A", "s"),
    )
    # One by its id, one by its texts; of spellings, capitals and spaces come first.
    assert [(one.query, one.title, one.summary, one.count) for one in kept] == [
        ("Cheap  flights", "A", "s", 4),
        ("cheap flights", "A", "s", 2),
    ]
    assert counts.merged == 2


def test_dwell_counts_in_units_of_the_least():
    rows = [
        Click("q", "a", "", dwell=35.0, count=2),  # 3 times 10 s
        Click("q", "a", "", count=4),  # no dwell: its clicks
        Click("q", "b", "", dwell=1e6),  # 10 times at most
        Click("q", "c", "", dwell=10.0),
    ]
    rules = config.ClickRules(dev_fraction=0, count_by="dwell")
    kept, counts = examples(*rows, rules=rules)
    assert {one.title: one.count for one in kept} == {"a": 10, "b": 10, "c": 1}
    told = {"by": "dwell", "clicks": 8, "counts": 21, "rows_by_dwell": 3}
    assert counts.report()["counted"] == told
    kept, counts = examples(*rows, rules=config.ClickRules(dev_fraction=0))
    assert {one.title: one.count for one in kept} == {"a": 6, "b": 1, "c": 1}
    told = {"by": "clicks", "clicks": 8, "counts": 8, "rows_by_dwell": 0}
    assert counts.report()["counted"] == told
    with pytest.raises(config.ConfigError, match="min_dwell"):
        config.ClickRules(count_by="dwell", min_dwell=0)


def test_an_epoch_reads_examples_by_their_counts():
    rows = [ClickExample("q", str(n), "", n) for n in (1, 2, 7, 60)]

    def times(**fields):
        made = clicks.repeat(rows, config.Language(**fields))
        read = [made[at].count for at in range(len(made))]
        assert read == sorted(read)
        return [read.count(n) for n in (1, 2, 7, 60)], made.report()

    assert times()[0] == [1, 1, 1, 1]
    assert times(repeat="log_count")[0] == [1, 2, 3, 6]
    found, said = times(repeat="count")
    assert found == [1, 2, 7, 20]
    assert "4 examples of clicks are read 30 times an epoch, 20 times at most" in said


def test_the_cap_keeps_the_most_clicked():
    kept, counts = examples(
        Click("q", "a", "", count=1),
        Click("q", "c", "", count=5),
        Click("q", "b", "", count=5),
        Click("q", "d", "", count=2),
    )
    assert [one.title for one in kept] == ["b", "c"]
    assert counts.dropped[clicks.CAPPED] == 2


def test_texts_come_from_the_corpus_where_the_log_has_an_id_alone():
    kept, _ = examples(
        Click("q", "", "", "d1"),
        Click("q", "own title", "", "d2"),
        texts={"d1": ("title", "text"), "d2": ("other", "")}.get,
    )
    assert [(one.title, one.summary) for one in kept] == [
        ("title", "text"),
        ("own title", ""),
    ]


def test_a_row_that_two_rules_drop_counts_for_the_first():
    kept, counts = examples(
        Click("held", "a", "s", clicked=False, dwell=1.0),
        Click("held", "a", "s", dwell=1.0),
        Click("q", "", "", clicked=False),
        Click("q", "", "", "nowhere", dwell=1.0),
        held_out=frozenset({"held"}),
    )
    assert not kept and not counts.held_out
    assert (counts.dropped[clicks.NOT_CLICKED], counts.dropped[clicks.SHORT]) == (2, 2)
    assert sum(counts.dropped.values()) == counts.rows == 4


def test_a_row_with_a_title_or_a_summary_keeps_its_own():
    kept, _ = examples(
        Click("q", "", "own summary", "d1"),
        Click("q", "own title", "", "d2"),
        texts=lambda _: ("title", "text"),
    )
    found = {(one.title, one.summary) for one in kept}
    assert found == {("", "own summary"), ("own title", "")}


def test_examples_are_in_the_order_of_their_queries_hashes():
    names = [f"query {i}" for i in range(30)]
    kept, _ = examples(*(Click(name, "t", "s") for name in names))
    assert [one.query for one in kept] == sorted(names, key=clicks.query_place) != names


def test_a_query_is_in_one_split_only():
    rules = config.ClickRules(dev_fraction=0.3)
    rows = [Click(f"query {i % 200}", f"t{i}", "s") for i in range(1000)]
    splits, _ = clicks_to_examples(rows, rules)
    train = {one.query for one in splits["train"]}
    dev = {one.query for one in splits["dev"]}
    assert not train & dev and len(train | dev) == 200
    assert 30 <= len(dev) <= 90
    assert dev == {query for query in train | dev if in_dev(query, 0.3)}
    assert in_dev("Query  7", 0.3) == in_dev("query 7", 0.3)
    assert not in_dev("query 7", 0.0)
    assert sum(in_dev(f"{i}", 0.999999) for i in range(50)) == 50


@pytest.mark.parametrize(
    ("fraction", "bound"),
    [
        (0.0, "0" * 16),
        (1e-30, "0" * 15 + "1"),  # rounded up
        (0.25, "4" + "0" * 15),
        (0.5, "8" + "0" * 15),
        (1.0, "f" * 16),
    ],
)
def test_a_share_of_all_places_is_devs(fraction, bound):
    assert clicks.dev_bound(fraction) == bound
    assert in_dev("a query", fraction) == (clicks.query_place("a query") < bound)


def test_a_short_dwell_counts_once():
    rules = config.ClickRules(min_dwell=10, count_by="dwell")
    for dwell, count in ((5.0, 3), (19.9, 3), (20.0, 6), (99.9, 27), (110.0, 30)):
        assert clicks.weigh_row(Click("q", "t", "", dwell=dwell, count=3), rules) == (
            Click("q", "t", "", dwell=dwell, count=count)
        )


def test_how_often_examples_are_read_is_told():
    rows = [ClickExample("q", str(n), "", n) for n in (0, 40, 1, *[2] * 19)]
    made = clicks.repeat(rows, config.Language(repeat="count", most=50))
    # 1, for no count, 40, 1 and 38: of 22 examples the first two are a tenth.
    assert len(made) == 80
    assert made.report() == (
        "22 examples of clicks are read 80 times an epoch, 40 times at most; a tenth "
        "of them, the most clicked, makes 52% of what is read"
    )
    for size, share in ((20, "69%"), (29, "60%")):  # one of 40 and others of 1
        many = [ClickExample("q", str(n), "", 40 if n == 3 else 1) for n in range(size)]
        told = clicks.repeat(many, config.Language(repeat="count", most=50)).report()
        assert f"makes {share} of" in told
    few = clicks.repeat(rows[1:3], config.Language(repeat="count", most=50)).report()
    assert "2 examples" in few and "makes 98% of" in few
    nothing = clicks.repeat([], config.Language())
    assert len(nothing) == 0
    assert "0 examples of clicks are read 0 times an epoch, 0 times" in nothing.report()


@pytest.mark.parametrize("count", [0, 1])
def test_small_logs(count):
    kept, counts = examples(*[Click("q", "t", "s")] * count)
    assert len(kept) == count and counts.rows == count


def by_engine(rows, rules, held_out, texts):
    with (
        tempfile.TemporaryDirectory() as folder,
        click_engine.open_engine(pathlib.Path(folder)) as connection,
    ):
        table = click_engine.run_rules(
            connection,
            click_logs.batches(iter(rows)),
            rules,
            held_out=held_out,
            documents=lambda: ((name, *text) for name, text in texts.items()),
        )
        found = {split: list(table.examples(split)) for split in ("train", "dev")}
        third = list(table.examples("train", every=3))
        return found, table.counts, third


# Of each rule rows on both sides, in ASCII and not.
LOG = [
    *(Click("q", f"t{n}", "s", count=n + 1, position=n % 52) for n in range(4)),
    Click("q", "t3", "s", clicked=False, position=1),
    Click("Q ", "T3", "s", dwell=10.0, count=3),
    Click("q", "t3", "s", dwell=9.99, position=1),
    Click("q", "t3", "s", dwell=9.99, clicked=False),
    Click("q", "t2", "s", dwell=39.9, count=2, position=1),
    Click("q", "t1", "s", dwell=1e9),
    Click("Straße", "café", "x"),
    Click("STRASSE", "cafe\u0301", "x", count=7),
    Click("held  OUT", "a", ""),
    Click("held out", "b", "", dwell=50.0),
    Click("Größe", "c", ""),
    Click("r", "", "", "d1", count=2),
    Click("r", "", "", "d1", dwell=20.0),
    Click("r", "", "", "d2"),
    Click("r", "", "", "nowhere"),
    Click("r", "own", "", "d1"),
    Click("r", "", "own", "d2"),
    Click("r", "", ""),
    *(Click(f"query {n}", f"t{n}", "") for n in range(12)),
]


@pytest.mark.parametrize("count_by", ["clicks", "dwell"])
@pytest.mark.parametrize("most", [1, 3])
def test_the_engine_follows_the_rules_in_one_log(most, count_by):
    rules = config.ClickRules(max_per_query=most, dev_fraction=0.4, count_by=count_by)
    held_out = frozenset({"held out", "grösse"})
    texts = {"d1": ("One", "of two"), "d2": ("", "")}
    expected, counts = clicks_to_examples(
        LOG, rules, held_out=held_out, texts=texts.get
    )
    found, counted, third = by_engine(LOG[::-1], rules, held_out, texts)
    assert found == expected and counted == counts
    assert third == expected["train"][::3]
    assert counts.examples["dev"] > 3 < counts.examples["train"]
    assert counts.held_out == 3 and counts.dropped[clicks.CAPPED] > 0


def test_figures_of_the_engine(tmp_path):
    """Queries by their number of examples, and clicks by position: the first fifty."""
    rows = [Click("one", "a", "", position=3), Click("one", "a", "", position=3)]
    rows += [Click("two", t, "", clicked=t == "b", position=3) for t in "abb"]
    rows += [Click("many", f"t{n}", "", position=n) for n in range(60)]
    rules = config.ClickRules(max_per_query=30, dev_fraction=0)
    with click_engine.open_engine(tmp_path / "it's new") as connection:
        table = click_engine.run_rules(
            connection, click_logs.batches(iter(rows)), rules
        )
        assert table.clicks_a_query() == {"1": 2, "20": 1}
        assert (table.count("train"), table.count("dev"), table.count("x")) == (
            32,
            0,
            0,
        )
        positions = table.shown["positions"]
        assert [*positions] == [str(n) for n in range(50)]
        assert positions["3"] == {"rows": 6, "clicked": 5}
        assert positions["4"] == {"rows": 1, "clicked": 1}
        none = click_logs.batches(iter([Click("q", "t", "s")]))
    with click_engine.open_engine(tmp_path / "other") as connection:
        table = click_engine.run_rules(connection, none, rules)
        assert table.shown["positions"] == {} and table.counts.rows == 1


@pytest.mark.parametrize("place", ["log", "corpus"])
def test_an_error_while_the_engine_reads_is_raised_as_it_was(tmp_path, place):
    """Not as DuckDB wraps it: file, line and kind of the error are the caller's."""
    error = DataError("log.tsv:8: field 'query': found ''")

    def failing(items, fails):
        yield from items
        if fails:
            raise error

    log = click_logs.batches(iter([Click("q", "", "", "d1")]))
    with click_engine.open_engine(tmp_path) as connection:
        with pytest.raises(DataError) as found:
            click_engine.run_rules(
                connection,
                failing(log, place == "log"),
                RULES,
                documents=lambda: failing([("d1", "a", "b")], place == "corpus"),
            )
    assert found.value is error


WORDS = ["a", "B", "a  b", "Straße", "STRASSE", "cafe\u0301", "café", "苹果", "i\u0307"]
text = st.sampled_from(["", *WORDS, "long text " * 30])
rows = st.lists(
    st.builds(
        Click,
        query=st.sampled_from([*WORDS, "x\ty", "x y", "İ"]),
        title=text,
        summary=text,
        document_id=st.sampled_from(["", "d1", "d2", "nowhere"]),
        clicked=st.booleans(),
        dwell=st.sampled_from([None, 3.0, 10.0, 39.9, 99.0, 1e9]),
        count=st.integers(1, 2**31 - 1),
    ),
    max_size=60,
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    rows,
    st.integers(1, 3),
    st.sampled_from([0.0, 0.4]),
    st.sampled_from(["clicks", "dwell"]),
    st.randoms(),
)
def test_sql_makes_what_the_rules_say(rows, most, fraction, count_by, random):
    rules = config.ClickRules(
        max_per_query=most, dev_fraction=fraction, count_by=count_by
    )
    held_out, texts = (
        frozenset({"b", "café"}),
        {"d1": ("One", "of two"), "d2": ("", "")},
    )
    expected, counts = clicks_to_examples(
        rows, rules, held_out=held_out, texts=texts.get
    )
    # The order of the log does not matter to either.
    random.shuffle(rows)
    assert clicks_to_examples(rows, rules, held_out=held_out, texts=texts.get) == (
        expected,
        counts,
    )
    found, counted, third = by_engine(rows, rules, held_out, texts)
    assert found == expected and counted == counts
    assert third == expected["train"][::3]


def test_a_digest_does_not_depend_on_order():
    first, second = ClickExample("q", "t", "s", 1), ClickExample("q", "t", "s", 2)
    digests = []
    for order in ([first, second], [second, first], [first, first], [first]):
        digest = Digest()
        for one in order:
            digest.add(one)
        digests.append(digest.hexdigest())
    assert digests[0] == digests[1] and len(set(digests)) == 3
    together = Digest()
    for batch in click_batches([first] * 3000 + [second] * 3000):
        together.add_batch(batch)
    apart = Digest()
    for one in [first, second] * 3000:
        apart.add(one)
    assert together.hexdigest() == apart.hexdigest()
    joined = Digest()
    joined.join(digests[3])
    joined.add(second)
    assert joined.hexdigest() == digests[0]
    # A sum of 128 bits.
    joined = Digest()
    for digest in ("f" * 32, f"{5:032x}"):
        joined.join(digest)
    assert joined.hexdigest() == f"{4:032x}"
