"""Random collections, measured as pytrec_eval and ir_measures do, to 1e-12."""

import ir_measures
import numpy as np
import pytest
import pytrec_eval

from ranker.metrics import ranking
from ranker.metrics.ranking import Rules

CUTS = (1, 3, 5, 10)
PYTREC = {"map", "recip_rank", "ndcg", "Rprec", "bpref"}
PYTREC |= {"num_q", "num_ret", "num_rel", "num_rel_ret"}
PYTREC |= {
    f"{name}.{','.join(map(str, CUTS))}"
    for name in ("ndcg_cut", "map_cut", "P", "recall", "success")
}
IR = ("RR(rel=2)", "P(rel=2)@3", "AP(rel=2)", "AP(rel=3)@5", "R(rel=2)@5")
IR += ("nDCG(gains={1:1,2:5,3:4})@5",)
# MS MARCO's script, which it takes for this, orders ties otherwise than trec_eval.
UNTIED = ("RR@3",)
IR += ("P(judged_only=True)@3", "AP(judged_only=True)", "nDCG(judged_only=True)@3")
IR += ("Rprec(rel=2)", "Bpref(rel=2)", "Success(rel=2)@3")


def collection(seed):
    """Grades from -1 on, two thirds of the scores tied, documents on one side alone."""
    draw = np.random.default_rng(seed)
    names = [f"d{n}" if n % 3 else f"é{n}漢" for n in range(draw.integers(2, 18))]
    levels = int(draw.integers(1, 5))
    qrels, run = {}, {}
    for q in range(int(draw.integers(1, 6))):
        judged = draw.choice(names, draw.integers(1, len(names) + 1), replace=False)
        listed = draw.choice(names, draw.integers(1, len(names) + 1), replace=False)
        grades = draw.integers(-1 if seed % 2 else 0, levels, len(judged))
        scores = draw.integers(0, 2 + len(listed) // 2, len(listed)) / 4 - 1
        qrels[f"q{q}"] = dict(zip(judged.tolist(), grades.tolist(), strict=True))
        run[f"q{q}"] = dict(zip(listed.tolist(), scores.tolist(), strict=True))
    return qrels, run


def without_negative(qrels):
    """trec_eval's NDCG reads memory that it should not where a grade is negative."""
    return {q: {d: max(g, 0) for d, g in one.items()} for q, one in qrels.items()}


def compare(seed):
    qrels, run = collection(seed)
    level = seed % 3 + 1
    ndcg = {name for name in PYTREC if name.startswith("ndcg")}
    theirs = {query: {} for query in qrels}
    for names, judged in ((PYTREC - ndcg, qrels), (ndcg, without_negative(qrels))):
        found = pytrec_eval.RelevanceEvaluator(judged, names, relevance_level=level)
        for query, values in found.evaluate(run).items():
            theirs[query] |= values
    ours = ranking.evaluate(qrels, run, list(theirs["q0"]), Rules(relevance=level))
    for name, one in ours.items():
        expected = [theirs[query][name] for query in one.queries]
        np.testing.assert_allclose(one.values, expected, 0, 1e-12, err_msg=name)
    gains = {q: {d: 2 ** max(g, 0) - 1 for d, g in x.items()} for q, x in qrels.items()}
    found = pytrec_eval.RelevanceEvaluator(gains, {"ndcg_cut.5"}).evaluate(run)
    (mine,) = ranking.evaluate(qrels, run, ["NDCG-exp@5"]).values()
    expected = [found[query]["ndcg_cut_5"] for query in mine.queries]
    np.testing.assert_allclose(mine.values, expected, 0, 1e-12)
    apart = {
        q: {d: s + 1e-3 * n for n, (d, s) in enumerate(x.items())}
        for q, x in run.items()
    }
    for names, listed in ((IR, run), (UNTIED, apart)):
        as_ir_measures(names, without_negative(qrels), listed)


def as_ir_measures(names, qrels, run):
    mine = ranking.evaluate(qrels, run, names)
    parsed = {name: ir_measures.parse_measure(name) for name in names}
    # One by one: asked for several, it may give a measure another one's gains, by the
    # order of a set.
    found = {
        (str(measure), x.query_id): x.value
        for measure in parsed.values()
        for x in ir_measures.iter_calc([measure], qrels, run)
    }
    for name, measure in parsed.items():
        expected = [found[str(measure), query] for query in mine[name].queries]
        np.testing.assert_allclose(mine[name].values, expected, 0, 1e-12, err_msg=name)


def test_as_pytrec_eval_and_ir_measures():
    for seed in range(12):
        compare(seed)


@pytest.mark.slow
def test_a_thousand_collections():
    for seed in range(1000):
        compare(seed)
