"""The measures on a sample in this repository, beside trec_eval's printed output."""

import pathlib

import pytest

from ranker.data import trec
from ranker.metrics import ranking
from ranker.metrics.ranking import Rules

SAMPLE = pathlib.Path(__file__).parent / "sample"


@pytest.mark.parametrize("level", [1, 2])
def test_every_printed_line_is_ours(level):
    """By trec_eval's own names; queries that the run lacks are out, as without -c."""
    lines = [
        line.split() for line in (SAMPLE / f"output.l{level}").read_text().splitlines()
    ]
    names = list(dict.fromkeys(name for name, _, _ in lines))
    found = ranking.evaluate(
        trec.load_qrels(SAMPLE / "qrels.txt").grades,
        trec.load_run(SAMPLE / "run.txt").scores,
        names,
        Rules(complete=False, relevance=level),
    )
    assert len(lines) == 19 * 4
    for name, query, printed in lines:
        one = found[name]
        mine = one.mean if query == "all" else one.values[one.queries.index(query)]
        digits = 4 if "." in printed else 0
        assert f"{mine:.{digits}f}" == printed, (name, query)
