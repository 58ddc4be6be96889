"""Tables of what benchmarks/evidence.py found, by the tests of docs/protocol.md.

python benchmarks/evidence_report.py --data NQQED --out runs/evidence

Reads OUT/*.npz and OUT/teacher_*.npy; prints Markdown. No accelerator is needed.
"""

import argparse
import json
import pathlib
from dataclasses import dataclass

import numpy as np
from evidence import CANDIDATES, Collection, ndcg, read
from scipy import stats

from ranker.metrics import calibration
from ranker.metrics.significance import holm

MARGIN = 0.005  # of equivalence, in NDCG@10
DRAWS = 2000  # of the bootstrap
CONTRASTS = (("hybrid", "point"), ("hybrid", "margin"))


@dataclass(frozen=True)
class Part:
    """Students of one part: S seeds, Q test queries, K candidates."""

    dev: dict[str, np.ndarray]  # name -> [S, Q, K]
    test: dict[str, np.ndarray]  # empty where test was not scored
    rates: dict[str, float]


def load(path: pathlib.Path) -> Part:
    """A file of benchmarks/evidence.py."""
    found = np.load(path)
    members = json.loads(str(found["members"]))
    names = list(dict.fromkeys(name for name, *_ in members))
    rows = {n: [i for i, one in enumerate(members) if one[0] == n] for n in names}
    test = found["test"]
    return Part(
        {n: found["dev"][r] for n, r in rows.items()},
        {n: test[r] for n, r in rows.items()} if test.size else {},
        {name: rate for name, _, _, rate, _ in members},
    )


def tau(scores: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Kendall's tau-b within each list, mean over queries, for each seed [S]."""
    upper = np.triu_indices(CANDIDATES, 1)

    def signs(x):
        return np.sign(x[..., upper[0]] - x[..., upper[1]])

    ours, theirs = signs(scores), signs(teacher)
    size = np.sqrt((ours**2).sum(-1) * (theirs**2).sum(-1))
    return ((ours * theirs).sum(-1) / np.maximum(size, 1e-9)).mean(-1)


def within(scores: np.ndarray, grades: np.ndarray) -> np.ndarray:
    """Pooled accuracy over pairs of one query with different grades, per seed [S]."""
    right = np.sign(scores[..., :, None] - scores[..., None, :])
    better = grades[:, :, None] > grades[:, None, :]
    return ((right + 1) / 2 * better).sum((-1, -2, -3)) / better.sum()


def across(scores, grades, dev, dev_grades) -> tuple[float, float]:
    """Accuracy over pairs of different queries; calibration error, Platt fit on dev."""
    queries = np.repeat(np.arange(len(grades)), CANDIDATES)
    accuracy, _ = calibration.cross_query_accuracy(
        scores.ravel(), grades.ravel(), queries
    )
    fitted = calibration.fit_platt(dev.ravel(), dev_grades.ravel() >= 1)
    probabilities = fitted(scores.ravel())
    error = calibration.expected_calibration_error(probabilities, grades.ravel() >= 1)
    return accuracy, error


@dataclass(frozen=True)
class Contrast:
    """A paired difference over seeds and queries."""

    difference: float
    low: float
    high: float
    p: float  # sign-flip over seeds
    equivalent: float  # p of two one-sided t tests over seeds, margin MARGIN


def contrast(a: np.ndarray, b: np.ndarray, seed: int = 0) -> Contrast:
    """Compares values [S, Q] of two arms that share seeds and queries."""
    by_seed = (a - b).mean(1)
    S, Q = a.shape
    draw = np.random.default_rng(seed)
    means = np.empty(DRAWS)
    for i in range(DRAWS):
        seeds, queries = draw.integers(S, size=S), draw.integers(Q, size=Q)
        means[i] = (a - b)[seeds][:, queries].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    signs = np.array(np.meshgrid(*[[1, -1]] * S)).reshape(S, -1).T
    flipped = np.abs(signs @ by_seed) >= abs(by_seed.sum()) - 1e-15
    error = by_seed.std(ddof=1) / np.sqrt(S)
    lower = stats.t.sf((by_seed.mean() + MARGIN) / error, S - 1)
    upper = stats.t.cdf((by_seed.mean() - MARGIN) / error, S - 1)
    return Contrast(
        float(by_seed.mean()),
        float(low),
        float(high),
        float(flipped.mean()),
        float(max(lower, upper)),
    )


def table(header: list[str], rows: list[list[str]]) -> None:
    """Prints a Markdown table."""
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def systems(data: Collection, out: pathlib.Path) -> None:
    """BM25, random order and the teachers."""
    rows, test = [], data.parts["test"]
    shuffled = np.random.default_rng(0).random((len(test), CANDIDATES))
    given = {"random order": shuffled, "BM25": data.bm25[test]}
    for path in sorted(out.glob("teacher_*.npy")):
        given[path.stem.replace("teacher_", "teacher: ")] = np.load(path)[test]
    for name, scores in given.items():
        rows.append([name, f"{ndcg(scores, data, test).mean():.4f}"])
    table(["system", "NDCG@10"], rows)


def arms(data: Collection, part: Part, teacher: np.ndarray) -> None:
    """One row an arm, then the contrasts."""
    test, dev = data.parts["test"], data.parts["dev"]
    rows, values = [], {}
    for name, scores in part.test.items():
        values[name] = ndcg(scores, data, test)
        means = values[name].mean(1)
        between = [
            across(one, data.grades[test], ours, data.grades[dev])
            for one, ours in zip(scores, part.dev[name], strict=True)
        ]
        cross, error = np.mean(between, axis=0)
        rows.append(
            [
                name,
                f"{part.rates[name]:g}",
                f"{means.mean():.4f} ({means.std(ddof=1):.4f})",
                f"{tau(scores, teacher[test]).mean():.3f}",
                f"{within(scores, data.grades[test]).mean():.4f}",
                f"{cross:.4f}",
                f"{error:.4f}",
            ]
        )
    table(["arm", "rate", "NDCG@10 (sd)", "tau", "pairs within", "across", "ECE"], rows)
    names = [*CONTRASTS, *((one, "labels") for one in values if one != "labels")]
    found = {f"{a} - {b}": contrast(values[a], values[b]) for a, b in names}
    primary = {f"{a} - {b}": found[f"{a} - {b}"].p for a, b in CONTRASTS}
    corrected = holm(primary)
    table(
        ["contrast", "difference", "95 %", "p", "p (Holm)", "p (equivalence)"],
        [
            [
                name,
                f"{one.difference:+.4f}",
                f"{one.low:+.4f} to {one.high:+.4f}",
                f"{one.p:.4f}",
                f"{corrected[name]:.4f}" if name in corrected else "",
                f"{one.equivalent:.4f}",
            ]
            for name, one in found.items()
        ],
    )
    bm25 = ndcg(data.bm25[test], data, test)
    gain = ndcg(teacher[test], data, test).mean() - bm25.mean()
    for name in values:
        above = contrast(values[name], np.broadcast_to(bm25, values[name].shape))
        share = (values[name].mean() - bm25.mean()) / gain
        print(
            f"- {name}: {above.difference:+.4f} over BM25 ({above.low:+.4f} to "
            f"{above.high:+.4f}), p {above.p:.4f}; {share:.0%} of the teacher's gain"
        )
    print()


def sizes(data: Collection, part: Part) -> None:
    """E0 and E3: one row a name."""
    split = "test" if part.test else "dev"
    rows = []
    for name, scores in (part.test or part.dev).items():
        means = ndcg(scores, data, data.parts[split]).mean(1)
        spread = f"{means.std(ddof=1):.4f}" if len(means) > 1 else ""
        rows.append([name, f"{means.mean():.4f}", spread])
    table(["students", f"NDCG@10 on {split}", "sd over seeds"], rows)


def main() -> None:
    """Prints what there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    data = read(args.data)
    print("### Systems\n")
    systems(data, args.out)
    for path in sorted(args.out.glob("*.npz")):
        kind, _, teacher = path.stem.partition("_")
        part = load(path)
        print(f"### {path.stem}\n")
        if kind == "loss":
            arms(data, part, np.load(args.out / f"teacher_{teacher}.npy"))
        else:
            sizes(data, part)


if __name__ == "__main__":
    main()
