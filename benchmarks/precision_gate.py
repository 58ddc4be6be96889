"""How often the gate of fewer bits accepts a loss that is as large as the margin.

    python benchmarks/precision_gate.py [--simulations 2000] [--files 5]

Draws sets of queries whose true mean loss is the margin (0.005 NDCG@10), gives them to
the gate, and counts what it accepts: at most 5 % is promised. The losses are those of
one relevant document that moves by a place, of a few queries that lose much, of a few
or many that change, and of heavy tails. The last columns are how often it accepts what
loses nothing, by the same changes up and down: its power. With --files, every set has
so many files whose true loss is the margin, which are tried in turn, and it counts the
sets in which one of them is accepted.
"""

import argparse
from collections.abc import Callable

import numpy as np

from ranker.serving import precision

_MARGIN = 0.005
Draw = Callable[[np.random.Generator, int, float], np.ndarray]


def one_moves(draw: np.random.Generator, n: int, loss: float) -> np.ndarray:
    """NDCG@10 of one relevant document: some move by a place, more of them down."""
    gain = np.append(1 / np.log2(np.arange(2, 12)), 0.0)
    places = np.minimum(draw.geometric(0.35, n) - 1, 9)
    shares = 0.35 * 0.65 ** np.arange(10)
    shares[9] = 0.65**9
    down, up = gain[:10] - gain[1:], np.append(0.0, gain[:9] - gain[1:10])
    moved = 0.1
    # Probability of a move down that makes the mean loss what is asked for.
    share = (loss / moved + shares @ up) / (shares @ down + shares @ up)
    which = draw.random(n)
    sinks, rises = which < moved * share, which > 1 - moved * (1 - share)
    return np.where(sinks, down[places], 0.0) - np.where(rises, up[places], 0.0)


def few_lose_much(draw: np.random.Generator, n: int, loss: float) -> np.ndarray:
    """One query in twenty changes, and most of these lose."""
    share = 0.5 + loss / (2 * 0.05 * 0.2)
    sign = np.where(draw.random(n) < share, 0.2, -0.2)
    return np.where(draw.random(n) < 0.05, sign, 0.0)


def few_change(draw: np.random.Generator, n: int, loss: float) -> np.ndarray:
    """One query in twenty changes, by amounts that differ."""
    return np.where(draw.random(n) < 0.05, draw.normal(loss / 0.05, 0.1, n), 0.0)


def many_change(draw: np.random.Generator, n: int, loss: float) -> np.ndarray:
    """One query in five changes a little."""
    return np.where(draw.random(n) < 0.2, draw.normal(loss / 0.2, 0.05, n), 0.0)


def heavy_tails(draw: np.random.Generator, n: int, loss: float) -> np.ndarray:
    """Every query changes, some by much."""
    return draw.laplace(loss, 0.02, n)


DRAWS: tuple[Draw, ...] = (
    one_moves,
    few_lose_much,
    few_change,
    many_change,
    heavy_tails,
)


def accepted(draw: Draw, n: int, loss: float, count: int, files: int = 1) -> float:
    """Share of sets of n queries in which the gate accepts one of the files."""
    generator = np.random.default_rng(n)
    reference = np.zeros(n)

    def verdict(seed: int) -> precision.Verdict:
        losses = draw(generator, n, loss)
        return precision.loss_verdict(reference, -losses, _MARGIN, seed)

    found = []
    for seed in range(count):
        verdicts = (verdict(seed) for _ in range(files))
        tried = precision.until_refused(verdicts, lambda one: one.accepted)
        found.append(any([one.accepted for one in tried]))
    return float(np.mean(found))


def main() -> None:
    """Prints a line for each kind of loss and number of queries."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--files", type=int, default=1, help="tried in turn")
    parser.add_argument("--queries", type=int, nargs="+", default=[50, 100, 300])
    given = parser.parse_args()
    precision._SAMPLES = given.samples
    for draw in DRAWS:
        true = float(draw(np.random.default_rng(99), 4_000_000, _MARGIN).mean())
        rates = [
            (
                accepted(draw, n, _MARGIN, given.simulations, given.files),
                accepted(draw, n, 0.0, given.simulations // 4),
            )
            for n in given.queries
        ]
        shown = ", ".join(
            f"{n} queries {wrong:.2%} (no loss {right:.0%})"
            for n, (wrong, right) in zip(given.queries, rates, strict=True)
        )
        print(f"{draw.__name__:<14} true loss {true:.5f}: accepted {shown}", flush=True)


if __name__ == "__main__":
    main()
