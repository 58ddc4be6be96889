import pytest

from ranker import config
from ranker.data.clicks import clicks_to_examples, in_dev
from ranker.data.records import Click

RULES = config.ClickRules(min_dwell=10, max_per_query=2, dev_fraction=0)


def examples(*clicks, rules=RULES):
    splits, report = clicks_to_examples(clicks, rules)
    return splits["train"], {k.removeprefix("clicks, "): v for k, v in report.items()}


def test_each_rule_drops_and_counts():
    kept, report = examples(
        Click("q", "a", "s"),
        Click("q", "b", "s", clicked=False),
        Click("q", "c", "s", dwell=9.9),
        Click("q", "d", "s", dwell=10.0),
        Click("q", "", ""),
    )
    assert [one.title for one in kept] == ["a", "d"]
    assert report["rows read"] == 5
    assert report["dropped: not clicked"] == 1
    assert report["dropped: dwell too short"] == 1
    assert report["dropped: no title and no summary"] == 1
    assert report["examples, train"] == 2


def test_same_query_and_document_merge_and_add_counts():
    kept, report = examples(
        Click("Cheap  flights", "A", "s", "d1"),
        Click("cheap flights", "other title", "s", "d1", count=3),
        Click("cheap flights", "a", " S "),
        Click("cheap flights", "A", "s"),
    )
    assert [(one.query, one.title, one.count) for one in kept] == [
        ("Cheap  flights", "A", 4),
        ("Cheap  flights", "A", 4),
    ] or [(one.title, one.count) for one in kept] == [("A", 4), ("a", 2)]
    assert report["merged: same query and document"] == 2


def test_the_cap_keeps_the_most_clicked():
    kept, report = examples(
        Click("q", "a", "", count=1),
        Click("q", "b", "", count=5),
        Click("q", "c", "", count=5),
        Click("q", "d", "", count=2),
    )
    assert [one.title for one in kept] == ["b", "c"]
    assert report["dropped: over the cap of a query"] == 2


def test_a_query_is_in_one_split_only():
    rules = config.ClickRules(dev_fraction=0.3)
    clicks = [Click(f"query {i % 200}", f"t{i}", "s") for i in range(1000)]
    splits, _ = clicks_to_examples(clicks, rules)
    train = {one.query for one in splits["train"]}
    dev = {one.query for one in splits["dev"]}
    assert not train & dev and len(train | dev) == 200
    assert 30 <= len(dev) <= 90
    assert in_dev("Query  7", 0.3) == in_dev("query 7", 0.3)


@pytest.mark.parametrize("count", [0, 1])
def test_small_logs(count):
    kept, report = examples(*[Click("q", "t", "s")] * count)
    assert len(kept) == count and report["rows read"] == count
