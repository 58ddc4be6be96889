"""Names of measures, their parameters, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranker.metrics.measures import (
    BASES,
    NEEDS_CUT,
    WITHOUT_CUT,
    parse_measure,
)


@pytest.mark.parametrize(
    ("name", "base", "k", "parameters"),
    [
        ("NDCG", "NDCG", None, {}),
        ("ndcg_cut_10", "NDCG", 10, {}),
        ("ndcg_cut.10", "NDCG", 10, {}),
        ("nDCG@10", "NDCG", 10, {}),
        ("nDCG(dcg='exp-log2')@5", "NDCG-exp", 5, {}),
        ("nDCG(gains={1:1, 2:3})@5", "NDCG", 5, {"gains": ((1, 1), (2, 3))}),
        ("map", "MAP", None, {}),
        ("AP(rel=2)@100", "MAP", 100, {"rel": 2}),
        ("map_cut_3", "MAP", 3, {}),
        ("recip_rank", "MRR", None, {}),
        ("RR@10", "MRR", 10, {}),
        ("P_10", "P", 10, {}),
        ("Precision@3", "P", 3, {}),
        ("P(rel=2,judged_only=True)@10", "P", 10, {"rel": 2, "judged_only": True}),
        ("recall_100", "R", 100, {}),
        ("Recall@10", "R", 10, {}),
        ("success_5", "Success", 5, {}),
        ("rprec", "Rprec", None, {}),
        ("BPref", "Bpref", None, {}),
        ("ERR(max_rel=4)@20", "ERR", 20, {"max": 4}),
        ("RBP(p=.95)", "RBP", None, {"p": 0.95}),
        ("rbp-residual(p=0.5)", "RBP-residual", None, {"p": 0.5}),
        ("Judged@10", "Judged", 10, {}),
        ("opa-MACRO", "OPA-macro", None, {}),
        ("PNR(complete=true)", "PNR", None, {"complete": True}),
        ("NumRelRet", "num_rel_ret", None, {}),
        ("num_ret", "num_ret", None, {}),
        ("NumRet(rel=1)", "num_rel_ret", None, {"rel": 1}),
    ],
)
def test_names(name, base, k, parameters):
    found = parse_measure(name)
    assert (found.name, found.base, found.k) == (name, base, k)
    for key, value in parameters.items():
        assert getattr(found, key) == value


@given(st.sampled_from(BASES), st.integers(1, 10**9 - 1), st.randoms())
def test_every_base_in_any_case_with_any_cut(base, k, random):
    word = "".join(random.choice((one.lower(), one.upper())) for one in base)
    if base not in NEEDS_CUT:
        assert parse_measure(word).base == base
    if base not in WITHOUT_CUT:
        found = parse_measure(f"{word}@{k}")
        assert (found.base, found.k) == (base, k)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NDGC@5", "unknown measure 'NDGC@5'; did you mean NDCG@k. Valid are NDCG@k"),
        ("zzzz", r"unknown measure 'zzzz'\. Valid are NDCG@k"),
        ("", r"unknown measure ''\. Valid"),
        ("P_5@10", "unknown measure"),
        ("P", "'P' needs a cut; write P@10"),
        ("Success", "needs a cut; write Success@10"),
        ("NDCG@0", "the cut '0', expected a whole number from 1 to 999,999,999"),
        ("P@99999999999", "from 1 to 999,999,999, as in P@10"),
        ("P(rel=2)", r"needs a cut; write P\(rel=2\)@10"),
        ("RBP(max=4,rel=2)", r"rel has no effect; write RBP\(max=4\)"),
        ("NDCG(gains={1:1,1:2})", "one gain, from 0, of each grade"),
        ("NDCG(gains={nan:1})", "one gain, from 0, of each grade"),
        ("MRR@01", "found the cut '01'"),
        ("MRR@ten", "found the cut 'ten'"),
        ("PNR@3", "'PNR@3' takes no cut; write PNR"),
        ("Rprec@5", "takes no cut; write Rprec"),
        ("P(p=2)@10", "found the parameter 'p=2'; it takes rel, judged_only, as in P"),
        ("PNR(rel=1)", "it takes complete, as in OPA"),
        ("num_q(rel=1)", "it takes none"),
        ("P(rel)@10", "found the parameter 'rel'"),
        ("P(rel=x)@10", r"found rel=x, expected a grade above 0, as in P\(rel=2\)@10"),
        ("P(rel=0)@10", "expected a grade above 0"),
        ("P(rel=nan)@10", "expected a grade above 0"),
        ("RBP(p=1)", "expected a number between 0 and 1"),
        ("ERR(max=-1)@5", "expected a grade above 0"),
        ("NDCG(gains={1:x})", "of each grade"),
        ("NDCG(gains=1)", "of each grade"),
        ("NDCG(dcg=cube)", "log2 or exp-log2"),
        ("MAP(judged_only=2)", "true or false"),
        ("P(rel=1,rel=2)@3", "rel is given twice"),
    ],
)
def test_what_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        parse_measure(name)
