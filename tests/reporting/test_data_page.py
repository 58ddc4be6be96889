from ranker.reporting import data_page

SPLIT = {
    "queries": 3,
    "candidates": 9,
    "candidate_recall": 0.5,
    "judged": 4,
    "relevant": 4,
    "judged_without_text": 1,
    "grades": {"0": 1, "2": 3},
    "source": "<b>run</b>",
    "dropped": {"no candidate": 2},
}
LENGTHS = {"edges": [0.5, 1.5, 2.5], "counts": [3, 1], "mean": 1.25, "max": 2.0}
REPORT = {
    "documents": 1234,
    "splits": {"test": SPLIT, "train": {**SPLIT, "candidate_recall": None}},
    "clicks": {
        "source": "log",
        "rows": 5000,
        "merged": 7,
        "examples": {"train": 11, "dev": 0},
        "dropped": {"not clicked": 13},
        "counted": {
            "by": "dwell",
            "clicks": 6001,
            "counts": 9017,
            "rows_by_dwell": 2003,
        },
        "a_query": {"1": 10, "20": 400_000},
        "positions": {"1": {"rows": 4, "clicked": 1}, "2": {"rows": 2, "clicked": 0}},
    },
    "leaks": {"train": {"by_id": 1, "by_text": 17}},
    "dropped": {"corpus.jsonl": {"records": 2, "of": 44, "first": "line 3: x"}},
    "lengths": {
        "teacher": {
            "length": 64,
            "cut": 0.125,
            "queries": LENGTHS,
            "candidates": {"edges": [], "counts": [], "mean": None, "max": None},
        }
    },
    "given_scores": {"teacher_scores": 4, "not_finite": {"count": 1, "first": ["q d"]}},
    "notes": ["no query of <i>train</i> is judged"],
}


def test_every_number_is_on_the_page_and_nothing_is_markup():
    page = data_page.render("runs/mine", REPORT)
    for shown in ("1,234", "50.0%", "5,000", "17", "2 of 44", "line 3: x", "q d"):
        assert shown in page, shown
    for shown in ("6,001", "9,017", "2,003"):
        assert shown in page, shown
    assert "<b>run</b>" not in page and "<i>train</i>" not in page
    assert page.count("<svg") == 3  # clicks of a query, positions, lengths of queries


def test_empty_data():
    empty = {
        **REPORT,
        "splits": {},
        "leaks": {},
        "dropped": {},
        "lengths": {},
        "given_scores": {},
        "notes": [],
        "clicks": {**REPORT["clicks"], "a_query": {}, "positions": {}},
    }
    assert data_page.render("x", empty).count("<svg") == 0
