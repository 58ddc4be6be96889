"""What holds for every measure: slices add up, queries stand alone, p fits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.metrics import comparison, ranking
from ranker.metrics.comparison import Inference, compare
from ranker.metrics.measures import BASES, COUNTS, NEEDS_CUT, parse_measure
from ranker.metrics.ranking import Rules

NAMES = tuple(f"{one}@3" if one in NEEDS_CUT else one for one in BASES)
NAMES += ("P(rel=2)@2", "ERR(max=5)@3", "RBP(p=0.5,max=4)", "NDCG(gains={1:3})@3")
NAMES += ("MAP(judged_only=true)", "OPA(complete=true)", "PNR(complete=true)")
_FEW = Inference(permutations=40)


def collection(seed, systems=2, queries=6):
    draw = np.random.default_rng(seed)
    qrels, runs = {}, {f"s{n}": {} for n in range(systems)}
    for q in range(queries):
        names = [f"d{n}" for n in range(8)]
        grades = draw.integers(-1, 4, 6)
        qrels[f"q{q}"] = dict(zip(names, grades.tolist(), strict=False))
        for run in runs.values():
            listed = draw.permutation(names)[: draw.integers(1, 9)]
            scores = draw.integers(0, 5, len(listed)) / 2
            run[f"q{q}"] = dict(zip(listed.tolist(), scores.tolist(), strict=True))
    qrels["q0"]["d0"] = 3
    return qrels, runs


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_the_weighted_mean_of_slices_is_the_total(seed, parts):
    qrels, runs = collection(seed)
    ranked = ranking.rank(qrels, runs["s0"])
    measures = [parse_measure(name) for name in NAMES]
    whole = ranking.measure(ranked, measures)
    slices = [
        ranking.measure(ranked.select(rows), measures)
        for rows in np.array_split(np.arange(len(ranked.queries)), parts)
    ]
    for one in measures:
        total = whole[one.name]
        assert np.array_equal(
            np.concatenate([part[one.name].values for part in slices]),
            total.values,
            equal_nan=True,
        ), one.name
        means = np.array([part[one.name].mean for part in slices])
        weights = np.array([part[one.name].weights.sum() for part in slices])
        if one.base in COUNTS:
            assert means.sum() == pytest.approx(total.mean)
        elif weights.sum() and not np.isinf(means).any():  # a slice without a bound
            known = weights > 0
            mean = np.average(means[known], weights=weights[known])
            assert mean == pytest.approx(total.mean), one.name


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_a_querys_value_is_the_same_whatever_else_a_run_has(seed):
    """Other queries left out of the run, complete or not."""
    qrels, runs = collection(seed)
    whole = ranking.evaluate(qrels, runs["s0"], NAMES)
    alone = {"q2": runs["s0"]["q2"]}
    for complete in (True, False):
        part = ranking.evaluate(qrels, alone, NAMES, Rules(complete=complete))
        for name in NAMES:
            values = [
                one.values[one.queries.index("q2")] for one in (whole[name], part[name])
            ]
            assert values[0] == values[1] or np.isnan(values).all(), name


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_every_difference_is_that_of_the_two_values_shown(seed):
    qrels, runs = collection(seed)
    system = compare(
        qrels, runs, NAMES, reference="s0", tests=_FEW, rules=Rules(relevance=3)
    ).summary()["systems"]
    for name in NAMES:
        shown, base = (system[one]["metrics"][name] for one in ("s1", "s0"))
        difference = system["s1"]["difference"][name]
        if None not in (shown, base, difference):
            assert difference == pytest.approx(shown - base, abs=1e-12), name
        low, high = system["s1"]["interval"][name] or (None, None)
        p = system["s1"]["p_value"][name]
        if low is not None:
            assert (low <= 0 <= high) == (p >= 0.05), name


def test_bounds_hold_the_value():
    qrels, runs = collection(3)
    found = compare(qrels, runs, NAMES, reference="s0", tests=_FEW)
    for name in NAMES:
        if parse_measure(name).base not in COUNTS:
            low, high = found.ties["s0"].bounds[name]
            assert low - 1e-12 <= found.results["s0"][name].mean <= high + 1e-12


def test_graded_measures_take_fractions():
    qrels = {"q": {"a": 0.5, "b": 1.5}}
    run = {"q": {"a": 2.0, "b": 1.0}}
    discount = 1 / np.log2(3)
    found = ranking.evaluate(qrels, run, ["NDCG", "MRR", "RBP(p=0.5,max=2)"])
    assert found["NDCG"].mean == pytest.approx(
        (0.5 + 1.5 * discount) / (1.5 + 0.5 * discount)
    )
    assert found["MRR"].mean == 0.5  # grade 0.5 is below the level 1
    assert found["RBP(p=0.5,max=2)"].mean == pytest.approx(0.5 * (0.25 + 0.5 * 0.75))
    level = Rules(relevance=0.5)
    assert ranking.evaluate(qrels, run, ["MRR"], level)["MRR"].mean == 1


def test_rbp_with_its_residual_by_hand():
    qrels = {"q": {"a": 1, "b": 0}}
    run = {"q": {"x": 3.0, "a": 2.0, "b": 1.0}}
    found = ranking.evaluate(qrels, run, ["RBP(p=0.5)", "RBP-residual(p=0.5)"])
    assert found["RBP(p=0.5)"].mean == pytest.approx(0.25)
    # Rank 1 is not judged, and neither is anything from rank 4 on: 1/2 + 1/8.
    assert found["RBP-residual(p=0.5)"].mean == pytest.approx(0.625)


def test_complete_pairs_by_hand():
    """c and d are missing: below a and b, and tied with each other."""
    qrels = {"q": {"a": 0, "b": 1, "c": 2, "d": 0}, "r": {"a": 1, "b": 0}}
    run = {"q": {"a": 2.0, "b": 1.0}}
    # Right: (b, d). Wrong: (b, a), (c, a), (c, b). Tied: (c, d), and that of r.
    found = ranking.evaluate(qrels, run, ["OPA(complete=true)", "OPA"])
    assert found["OPA(complete=true)"].mean == pytest.approx((1 + 0.5 + 0.5) / 6)
    assert found["OPA"].mean == 0
    whole = ranking.evaluate(qrels, run, ["OPA"], Rules(complete_pairs=True))
    assert whole["OPA"].mean == found["OPA(complete=true)"].mean
    ranked = ranking.rank(qrels, run)
    assert ranking.num_pairs(ranked, parse_measure("OPA(complete=true)")) == 6


@pytest.mark.parametrize("name", ["ERR(max=2)@3", "RBP(max=2)"])
def test_a_highest_grade_below_the_judgements_is_refused(name):
    qrels, runs = collection(0)
    with pytest.raises(ValueError, match=r"the judgements have the grade 3; write"):
        ranking.evaluate(qrels, runs["s0"], [name])


def test_err_has_the_highest_grade_of_all_judgements_though_none_is_found():
    qrels = {"q": {"a": 1, "b": 4}, "r": {"a": 5}}
    found = ranking.evaluate(qrels, {"q": {"a": 1.0}}, ["ERR"], Rules(complete=False))
    assert found["ERR"].mean == pytest.approx(1 / 2**5)


# --- seeds, equivalence, notes ---


def test_seeds_by_hand():
    qrels = {f"q{n}": {"a": 1} for n in range(4)}
    ranks = {"ours": (1, 2, 4), "base": (2,)}
    runs = {
        name: [
            {
                q: {"a": 1.0, **{f"x{n}": 2.0 + n for n in range(rank - 1)}}
                for q in qrels
            }
            for rank in seeds
        ]
        for name, seeds in ranks.items()
    }
    system = compare(qrels, runs, ["MRR"], reference="base").summary()["systems"]
    assert system["ours"]["metrics"]["MRR"] == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert system["ours"]["seeds"] == 3
    assert system["ours"]["sd_over_seeds"]["MRR"] == pytest.approx(
        np.std([1, 0.5, 0.25], ddof=1)
    )
    assert system["ours"]["p_value"]["MRR"] > 0.5
    assert "seeds" not in system["base"]


def test_queries_that_one_seed_lacks_are_out_of_all():
    qrels = {"q": {"a": 1}, "r": {"a": 1}, "s": {"a": 1}}
    full = {q: {"a": 1.0} for q in qrels}
    part = {q: {"b": 2.0, "a": 1.0} for q in ("q", "r")}
    found = compare(
        qrels,
        {"ours": [full, part], "base": full},
        ["MRR"],
        reference="base",
        rules=Rules(complete=False),
    )
    assert found.results["ours"]["MRR"].queries == ["q", "r"]
    assert found.results["ours"]["MRR"].mean == pytest.approx(0.75)
    common = found.summary()["common"]
    assert common["queries"] == 2 and common["systems"]["base"]["MRR"] == 1


def test_equivalence_needs_a_small_spread_and_not_a_large_p():
    qrels = {f"q{n}": {"a": 1, "b": 0} for n in range(30)}

    def run(wrong):
        return {
            q: {"a": 1.0, "b": 2.0 if n in wrong else 0.0} for n, q in enumerate(qrels)
        }

    runs = {"base": run({0, 1}), "near": run({1, 2}), "noisy": run(set(range(3, 17)))}
    runs["noisy2"] = run({*range(2, 4), 0, 1})
    found = compare(
        qrels, runs, ["MRR"], reference="base", tests=Inference(margin=0.1)
    ).differences
    assert found["near"]["MRR"].equivalent is True
    assert found["noisy"]["MRR"].equivalent is False
    assert found["near"]["MRR"].wins == (1, 28, 1)
    without = compare(qrels, runs, ["MRR"], reference="base").differences
    assert without["near"]["MRR"].equivalent is None


def notes(qrels, runs, names, **rules):
    found = compare(
        qrels, runs, names, reference="s0", tests=_FEW, rules=Rules(**rules)
    )
    return found.notes


def test_notes_on_what_is_behind_the_numbers():
    qrels, runs = collection(1)
    qrels["q5"] = {"d1": 0}
    (told,) = [n for n in notes(qrels, runs, ["MRR"]) if "relevant" in n]
    assert told.startswith("1 of 6 queries, such as 'q5', have no relevant document")
    runs["s1"] = {"q0": runs["s1"]["q0"]}
    told = " ".join(notes(qrels, runs, ["MRR", "OPA"], complete=False))
    assert "s1: its values are over 1 queries, those of s0 over 6" in told
    assert "judged pairs, those of s0" in told
    flat = {q: dict.fromkeys(listed, 1.0) for q, listed in runs["s0"].items()}
    told = " ".join(notes(qrels, {"s0": runs["s0"], "flat": flat}, ["MRR"]))
    assert "flat: a constant scorer" in told and "MRR could be" in told


def test_queries_without_a_relevant_document_are_those_of_the_rules():
    """Whatever level a measure of its own has."""
    qrels = {"q": {"a": 1}, "r": {"a": 2}, "s": {"a": 0}}
    measures = [parse_measure(one) for one in ("MRR", "P(rel=2)@3")]
    [told] = comparison.check_judgements(qrels, measures, Rules())
    assert told.startswith("1 of 3 queries, such as 's', have no relevant document (gr")
    assert "grade 1 or higher" in told
    [told] = comparison.check_judgements(qrels, measures, Rules(relevance=2))
    assert "2 of 3 queries, such as 'q'" in told and "grade 2 or higher" in told
    good = {"q": {"a": 1}, "r": {"a": 2}}
    assert comparison.check_judgements(good, measures, Rules()) == []


@pytest.mark.parametrize(
    ("name", "highest", "refused"),
    [
        ("MRR", 1, False),  # the level itself is relevant
        ("MRR", 0.5, True),
        ("P(rel=2)@1", 1, True),
        ("P(rel=2)@1", 2, False),
        ("NDCG", 0.5, False),
        ("NDCG", 0, True),
        ("ERR", 0, True),
        ("NDCG(gains={0:1})", 0, False),
        ("RBP(max=2)", 0.5, False),
        ("RBP(max=2)", 0, True),
        ("RBP", 0.5, True),
        ("Judged@1", 0, False),
        ("OPA", 0, False),
    ],
)
def test_which_judgements_a_measure_needs(name, highest, refused):
    qrels = {"q": {"a": highest, "b": 0}}
    if not refused:
        comparison.check_judgements(qrels, [parse_measure(name)], Rules())
        return
    with pytest.raises(ValueError, match="no document is relevant: the highest grade"):
        comparison.check_judgements(qrels, [parse_measure(name)], Rules())


def test_judgements_that_can_give_nothing_but_0_are_refused():
    qrels, runs = collection(0)
    with pytest.raises(ValueError, match="MRR: no document is relevant: the highest g"):
        compare(qrels, runs, ["NDCG", "MRR"], reference="s0", rules=Rules(relevance=9))
    with pytest.raises(ValueError, match=r"P\(rel=7\)@3: no document is relevant"):
        compare(qrels, runs, ["P(rel=7)@3"], reference="s0")
    zero = {q: dict.fromkeys(one, 0) for q, one in qrels.items()}
    with pytest.raises(ValueError, match="NDCG: no document is relevant"):
        comparison.check_judgements(zero, [parse_measure("NDCG")], Rules())
