"""Several systems: means, paired tests, correction, slices."""

import json
import math

import numpy as np
import pytest

from ranker.metrics import comparison, ranking, significance
from ranker.metrics.comparison import NO_VALUE, Inference, compare, slice_queries
from ranker.metrics.ranking import Rules

MEASURES = ("NDCG@10", "MAP", "PNR")


def test_every_measure_of_pairs_says_how_many_it_counts():
    qrels = {f"q{n}": {"a": 2, "b": 1, "c": 0} for n in range(3)}
    whole = {q: {"a": 3.0, "b": 2.0, "c": 1.0} for q in qrels}
    short = {q: {"a": 3.0, "b": 2.0} for q in qrels}
    found = compare(
        qrels,
        {"whole": whole, "short": short},
        ("OPA(complete=true)", "OPA", "PNR-macro", "MRR"),
        reference="whole",
    )
    system = found.summary()["systems"]["short"]
    assert system["pairs"] == 9
    assert system["counted_pairs"] == {
        "OPA(complete=true)": 9,
        "OPA": 3,
        "PNR-macro": 3,
    }
    notes = [one for one in found.notes if "judged pairs" in one]
    assert len(notes) == 1 and "short: its values are over 3 judged pairs" in notes[0]


def systems(queries=40, names=("a", "b", "c"), seed=0):
    generator = np.random.default_rng(seed)
    documents = [f"d{n}" for n in range(20)]
    qrels, runs = {}, {name: {} for name in names}
    for q in range(queries):
        grades = generator.integers(0, 3, 20)
        qrels[f"q{q}"] = dict(zip(documents, grades.tolist(), strict=True))
        for quality, name in enumerate(names):
            scores = quality * grades + generator.normal(size=20)
            runs[name][f"q{q}"] = dict(zip(documents, scores.tolist(), strict=True))
    return qrels, runs


def test_every_number_is_that_of_the_single_tests():
    qrels, runs = systems()
    found = compare(
        qrels, runs, MEASURES, reference="b", tests=Inference(permutations=500)
    )
    for measure in MEASURES:
        results = {
            name: ranking.evaluate(qrels, run, [measure])[measure]
            for name, run in runs.items()
        }
        p = {}
        for name in ("a", "c"):
            one = found.differences[name][measure]
            assert one.queries == 40
            assert one.mean == pytest.approx(results[name].mean - results["b"].mean)
            p[name] = one.p_value
            if measure != "PNR":
                both = results[name].values, results["b"].values
                ends = significance.randomisation_interval(*both, permutations=500)
                assert (one.low, one.high) == pytest.approx(ends)
                assert p[name] == significance.randomisation_test(
                    *both, permutations=500
                )
                gaps = both[0] - both[1]
                assert one.effect_size == pytest.approx(gaps.mean() / gaps.std(ddof=1))
                assert one.wins == tuple(
                    int(np.sum(np.sign(gaps) == sign)) for sign in (1, 0, -1)
                )
        for name, corrected in significance.holm(p).items():
            assert found.differences[name][measure].p_holm == corrected
    assert "b" not in found.differences
    assert found.differences["a"]["MAP"].high < 0 < found.differences["c"]["MAP"].low


def test_queries_that_one_system_lacks():
    qrels, runs = systems(6, ("a", "b"))
    del runs["b"]["q1"], runs["a"]["q2"]
    found = compare(qrels, runs, ["MAP"], reference="a", rules=Rules(complete=False))
    assert found.differences["b"]["MAP"].queries == 4
    assert np.isnan(found.values("b", "MAP")).tolist() == [0, 1, 0, 0, 0, 0]
    assert found.summary()["systems"]["b"]["queries"] == 5
    whole = compare(qrels, runs, ["MAP"], reference="a")
    assert whole.differences["b"]["MAP"].queries == 6
    assert whole.values("b", "MAP")[1] == 0


def test_one_query_has_no_test():
    qrels, runs = systems(1)
    found = compare(qrels, runs, MEASURES, reference="a")
    assert found.differences["b"]["MAP"] is None
    system = found.summary()["systems"]["b"]
    assert system["metrics"]["MAP"] > 0
    assert system["p_value"]["MAP"] is system["interval"]["MAP"] is None


def test_the_summary_is_json_without_nan():
    qrels = {"q": {"a": 1}, "r": {"a": 1}}
    run = {"q": {"a": 1.0}, "r": {"a": 1.0}}
    found = compare(qrels, {"x": run, "y": run}, ["PNR", "MAP"], reference="x")
    text = json.dumps(found.summary(), allow_nan=False)
    assert json.loads(text)["systems"]["y"]["metrics"] == {"PNR": None, "MAP": 1.0}


def test_slices_have_the_means_of_their_queries():
    qrels, runs = systems(9)
    fields = {"length": {f"q{n}": n for n in range(8)}, "kind": {"q0": "x", "q1": "x"}}
    found = compare(qrels, runs, MEASURES, reference="a", fields=fields)
    shown = [(one.field, one.value, one.queries) for one in found.slices]
    assert shown == [
        ("length", "low (0 to 2)", 3),
        ("length", "middle (3 to 5)", 3),
        ("length", "high (6 to 7)", 2),
        ("length", NO_VALUE, 1),
        ("kind", "x", 2),
        ("kind", NO_VALUE, 7),
    ]
    some = {query: qrels[query] for query in ("q3", "q4", "q5")}
    for name, run in runs.items():
        expected = ranking.evaluate(some, run, MEASURES)
        for measure in MEASURES:
            mean = found.slices[1].metrics[name][measure]
            assert mean == pytest.approx(expected[measure].mean)


def test_cutting_queries_by_a_field():
    frequency = {f"q{n}": str(2**n) for n in range(9)}  # a TSV holds texts
    assert list(slice_queries("frequency", frequency)) == [
        "tail (1 to 4)",
        "torso (8 to 32)",
        "head (64 to 256)",
    ]
    assert list(slice_queries("fold", {"a": "2", "b": "10", "c": "2"})) == ["2", "10"]
    equal = slice_queries("length", {f"q{n}": max(n, 7) for n in range(14)})
    assert [len(members) for members in equal.values()] == [8, 2, 4]
    assert slice_queries("kind", {"a": "", "b": None}) == {NO_VALUE: ["a", "b"]}
    with pytest.raises(ValueError, match="'text' has 40 different texts"):
        slice_queries("text", {f"q{n}": f"words {n}" for n in range(40)})
    mixed = slice_queries("size", {"a": "1", "b": "large", "c": math.nan})
    assert set(mixed) == {"1", "large", "nan"}


@pytest.mark.parametrize(("count", "thirds"), [(5, False), (6, True)])
def test_few_numbers_are_slices_of_their_own(count, thirds):
    found = slice_queries("length", {f"q{n}": n for n in range(count)})
    names = ["low (0 to 1)", "middle (2 to 3)", "high (4 to 5)"]
    assert [*found] == (names if thirds else [str(n) for n in range(count)])


def test_thirty_texts_are_slices_and_one_more_is_too_many():
    texts = {f"q{n}": f"text {n:02d}" for n in range(31)}
    with pytest.raises(ValueError, match="'kind' has 31 different texts, such as 'te"):
        slice_queries("kind", texts)
    del texts["q30"]
    assert len(slice_queries("kind", texts)) == 30


def ranked_at(ranks):
    """A run of a query each, with its one relevant document at these ranks."""
    return {
        f"q{n}": {"a": 1.0, **{f"x{m}": 2.0 + m for m in range(rank - 1)}}
        for n, rank in enumerate(ranks)
    }


@pytest.mark.parametrize(
    ("ours", "base", "said"),
    [
        ([1, 2], 1, "ours and base have fewer than 6 queries in common for MRR: no p"),
        ([1, 2], 2, "ours and base have fewer than 6 queries in common for MRR: too"),
        ([2, 1], 2, "ours and base have fewer than 6 queries in common for MRR: too"),
    ],
)
def test_too_few_queries_for_an_interval_are_noted(ours, base, said):
    qrels = {f"q{n}": {"a": 1} for n in range(6)}

    def found(queries):
        some = {q: qrels[q] for q in [*qrels][:queries]}
        runs = {
            "ours": [ranked_at([1] * queries) for _ in range(ours[0])],
            "base": [ranked_at([2] * queries) for _ in range(base)],
        }
        return compare(some, runs, ["MRR"], reference="base").notes

    assert [note for note in found(5) if said in note]
    assert not found(6)


@pytest.mark.parametrize("queries", [0, 1])
def test_seeds_need_two_queries_in_common_for_a_test(queries):
    qrels = {f"q{n}": {"a": 1} for n in range(4)}
    run = ranked_at([1, 2, 1, 2])
    ours = [{q: run[q] for q in ("q0", "q1")} for _ in range(2)]
    base = {q: run[q] for q in [*run][2 - queries :]}
    found = compare(
        qrels,
        {"ours": ours, "base": base},
        ["MRR"],
        reference="base",
        rules=Rules(complete=False),
    )
    assert found.differences["ours"]["MRR"] is None
    assert "ours and base have fewer than 2 queries in common" in found.notes[-1]


def test_ties_are_noted_from_one_in_a_hundred_on():
    qrels = {"q": {"a": 1, "b": 0}}

    def found(documents):
        listed = {f"x{n}": float(n) for n in range(documents - 2)}
        run = {"q": {**listed, "a": 500.0, "b": 500.0}}
        found = compare(qrels, {"s": run}, ["MRR"], reference="s")
        return [note for note in found.notes if "equal score" in note]

    assert not found(200)  # 2 of 200
    [note] = found(199)
    assert "s: 1.0% of its documents have an equal score; ties go by" in note
    assert "MRR could be 0.5000 to 1.0000" in note


def test_fewer_queries_or_pairs_are_noted_beyond_one_in_a_hundred():
    qrels = {f"q{n}": {"a": 1} for n in range(200)}
    whole = ranked_at([1] * 200)

    def found(queries):
        part = {q: whole[q] for q in [*whole][:queries]}
        found = compare(
            qrels,
            {"part": part, "whole": whole},
            ["MRR"],
            reference="whole",
            rules=Rules(complete=False),
            tests=Inference(permutations=10),
        )
        return [note for note in found.notes if "its values are over" in note]

    assert not found(198)
    [note] = found(197)
    assert note.startswith("part: its values are over 197 queries, those of whole over")
    assert note.endswith("200; compare the means over common queries")


def test_equal_values_are_ties_and_rounding_is_no_win():
    finding = significance.Finding(4, 0.0, -1.0, 1.0, 1.0, math.nan)
    gaps = np.array([1e-13, -1e-13, 1e-11, -1e-11, 0.5, math.nan])
    found = comparison.described_test(finding, 1.0, np.array([1.0, 3.0]), gaps)
    assert found.wins == (2, 2, 1)
    assert found.effect_size == pytest.approx(2 / math.sqrt(2))
    assert found.equivalent is None


@pytest.mark.parametrize(("p", "equivalent"), [(0.049, True), (0.05, False)])
def test_equivalence_is_claimed_below_five_percent(p, equivalent):
    finding = significance.Finding(9, 0.0, -1.0, 1.0, 1.0, p)
    found = comparison.described_test(finding, 1.0, np.ones(2), np.ones(2))
    assert found.equivalent is equivalent


def test_what_cannot_be_compared():
    qrels, runs = systems(3)
    with pytest.raises(ValueError, match="'z' is not one of the systems a, b, c"):
        compare(qrels, runs, MEASURES, reference="z")
    with pytest.raises(ValueError, match="unknown measure"):
        compare(qrels, runs, ["NDGC"], reference="a")
    runs["b"]["q0"]["d0"] = math.nan
    with pytest.raises(ValueError, match="system 'b': query 'q0': document 'd0'.*NaN"):
        compare(qrels, runs, MEASURES, reference="a")
