"""How often tests reject what is true, and intervals hold what is true, by simulation.

    python benchmarks/type_one_error.py [--simulations 2000] [--permutations 1999]
        [--only NAME ...]

Systems are drawn at random, without and with a true difference, for 10, 20 and 50
queries: means of bounded values, pooled and per-query PNR and OPA of queries with very
different numbers of pairs, two one-sided tests at the edge of the margin, and systems
of 3 and 5 seeds whose seeds and queries differ. A line for each; the last is JSON.

`attainable` is the share of all 2 ** n swaps that the test rejects, over the systems
drawn: what an exact test of level 0.05 can reach, as equal differences leave few
different p. It has no noise of its own, so a rate beside it shows what is chance.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ranker.metrics import significance
from ranker.metrics.significance import Finding, PairedTotals

QUERIES = (10, 20, 50)
_FEW = 10  # queries whose swaps are all tried for `attainable`
_MARGIN = 0.5  # large beside the spread, or the tests are far from their level
Row = dict[str, object]


def means(generator: np.random.Generator, n: int, shift: float) -> PairedTotals:
    """Two systems' values of n queries: queries differ, systems are alike but shift."""
    query = generator.beta(2, 2, n)
    a, b = (query + 0.2 * generator.normal(size=n) for _ in range(2))
    return PairedTotals((a + shift, b), (np.ones(n), np.ones(n)))


def skewed(generator: np.random.Generator, n: int, shift: float) -> PairedTotals:
    """Differences such as those of reciprocal ranks: most are 0, a few are large."""
    values = 1 / generator.geometric(0.4, (2, n))
    return PairedTotals((values[0] + shift, values[1]), (np.ones(n), np.ones(n)))


def pairs_of(
    base: str, *, uneven: bool = False
) -> Callable[[np.random.Generator, int, float], PairedTotals]:
    """Two systems' pairs: 20 to 60 a query, or uneven: 1 to over 100."""

    def draw(generator: np.random.Generator, n: int, shift: float) -> PairedTotals:
        total = generator.integers(20, 61, n)
        if uneven:
            total = 1 + generator.negative_binomial(1, 0.04, n)
        ease = generator.normal(0.4, 0.8, n)
        right = []
        for add in (shift, 0.0):
            logit = ease + add + 0.5 * generator.normal(size=n)
            right.append(generator.binomial(total, 1 / (1 + np.exp(-logit))) * 1.0)
        wrong = [total - one for one in right]
        if base == "OPA":
            return PairedTotals((right[0], right[1]), (total * 1.0, total * 1.0))
        if base == "PNR":
            return PairedTotals(
                (right[0], right[1]), (wrong[0], wrong[1]), model="odds"
            )
        known = [one > 0 for one in wrong]
        ratios = [
            np.divide(r, w, out=np.zeros(n), where=w > 0)
            for r, w in zip(right, wrong, strict=True)
        ]
        weights = known[0] * 1.0, known[1] * 1.0
        return PairedTotals((ratios[0], ratios[1]), weights, model="factor")

    return draw


def truth(draw: Callable[..., PairedTotals], shift: float) -> float:
    """The difference over very many queries."""
    pair = draw(np.random.default_rng(99), 2_000_000, shift)
    first, second = (
        float(pair.totals[i].sum() / pair.weights[i].sum()) for i in (0, 1)
    )
    return first - second


def seeds(
    generator: np.random.Generator, n: int, count: int, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """Values by seed and query of two systems that are alike: count seeds, and one."""

    def draw(size: int) -> np.ndarray:
        return (
            own
            + spread * generator.normal(size=(size, 1))
            + 0.2 * generator.normal(size=(size, n))
            + 0.15 * generator.normal(size=n)
        )

    own = generator.beta(2, 2, n)
    return draw(count), draw(count)


def rates(found: list[Finding], true: float) -> dict[str, float]:
    """Share of rejections, and of intervals that hold the true difference."""
    known = [one for one in found if np.isfinite(one.low)]
    return {
        "rejected": float(np.mean([one.p_value < 0.05 for one in found])),
        "covered": float(np.mean([one.low <= true <= one.high for one in known])),
        "with_interval": len(known) / len(found),
    }


def attainable(draw: Callable[..., PairedTotals], n: int, count: int) -> float:
    """Mean over `count` pairs of the level that trying every swap can reach."""
    generator = np.random.default_rng(n)
    swaps = ((np.arange(2**n)[:, None] >> np.arange(n)) & 1).astype(float)
    found = []
    for _ in range(count):
        size = np.abs(significance.swapped([draw(generator, n, 0.0)], swaps)[0][:, 0])
        size = np.sort(size.round(9))
        extreme = len(size) - np.searchsorted(size, size, side="left")
        found.append(np.mean(extreme / len(size) < significance.ALPHA))
    return float(np.mean(found))


def simulate_pairs(
    simulations: int, permutations: int, only: Sequence[str] = ()
) -> Iterator[Row]:
    """Rows of the randomisation test: of systems that are alike, and that differ."""
    draws = {
        "mean": (means, 0.15),
        "mean, skewed": (skewed, 0.15),
        "OPA": (pairs_of("OPA"), 0.5),
        "OPA, uneven": (pairs_of("OPA", uneven=True), 0.5),
        "PNR": (pairs_of("PNR"), 0.5),
        "PNR, uneven": (pairs_of("PNR", uneven=True), 0.5),
        "PNR-macro": (pairs_of("PNR-macro"), 0.5),
    }
    for name in only or draws:
        draw, moved = draws[name]
        for shift in (0.0, moved):
            true = truth(draw, shift) if shift else 0.0
            for n in (6, *QUERIES):
                generator = np.random.default_rng(n)
                found = significance.paired_tests(
                    [draw(generator, n, shift) for _ in range(simulations)],
                    permutations=permutations,
                )
                row = {"what": name, "n": n, "true": true, **rates(found, true)}
                if not shift and n <= _FEW:
                    row["attainable"] = attainable(draw, n, simulations)
                yield row


def simulate_equivalence(simulations: int, permutations: int) -> Iterator[Row]:
    """Rows of two one-sided tests, of systems that differ by the margin."""
    for n in QUERIES:
        generator = np.random.default_rng(n)
        found = significance.paired_tests(
            [means(generator, n, _MARGIN) for _ in range(simulations)],
            permutations=permutations,
            margin=_MARGIN,
        )
        share = float(np.mean([one.p_equivalence < 0.05 for one in found]))
        yield {"what": "equivalence at its margin", "n": n, "rejected": share}


def simulate_seeds(simulations: int) -> Iterator[Row]:
    """Rows of systems of several seeds that are alike."""
    for count in (3, 5):
        for spread in (0.0, 0.03, 0.2):
            for n in QUERIES:
                generator = np.random.default_rng(n)
                found = [
                    significance.crossed_test(*seeds(generator, n, count, spread))
                    for _ in range(simulations)
                ]
                what = f"{count} seeds, sd {spread} between them"
                yield {"what": what, "n": n, **rates(found, 0.0)}


def simulate(simulations: int, permutations: int, only: Sequence[str]) -> Iterator[Row]:
    """A row for each question; of some draws of `simulate_pairs` alone, if named."""
    yield from simulate_pairs(simulations, permutations, only)
    if not only:
        yield from simulate_equivalence(simulations, permutations)
        yield from simulate_seeds(simulations)


def main() -> None:
    """Prints a line a question, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--permutations", type=int, default=1999)
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME")
    given = parser.parse_args()
    rows = []
    for row in simulate(given.simulations, given.permutations, given.only):
        rows.append(row)
        shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        print(shown, flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
