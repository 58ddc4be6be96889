"""How long metrics and tests take, beside pytrec_eval, on made runs.

    python benchmarks/metrics.py [--rounds 5] [--queries 6980] [--documents 1000]

Three questions: the same five measures of one run from the same dicts by both, in
turns, so that both meet the same machine (6,980 queries as in MS MARCO's small dev set,
one or two judged documents a query); the same with all scores tied in tens; and
`ranker.evaluate` from two files of 1,000 queries to the table, with 10,000
randomisations of means and of pooled PNR and OPA. The last line is one JSON object.
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytrec_eval

from ranker.metrics import ranking

OURS = ("NDCG@10", "MRR", "MAP", "R@1000", "P@10")
THEIRS = {"ndcg_cut.10", "recip_rank", "map", "recall.1000", "P.10"}
NAMES = dict(
    zip(OURS, ("ndcg_cut_10", "recip_rank", "map", "recall_1000", "P_10"), strict=True)
)


def make(queries: int, documents: int, *, seed: int, ties: bool = False):
    """Judgements and a run; every query finds other documents of a large corpus."""
    generator = np.random.default_rng(seed)
    qrels, run = {}, {}
    for q in range(queries):
        names = [str(n) for n in generator.integers(0, 8_841_823, documents)]
        scores = generator.normal(size=documents).astype(np.float32)
        if ties:
            scores = np.round(scores, 2)
        run[str(q)] = dict(zip(names, scores.tolist(), strict=True))
        judged = [names[n] for n in generator.integers(0, documents, q % 2 + 1)]
        qrels[str(q)] = {name: int(generator.integers(1, 3)) for name in judged}
    return qrels, run


def seconds(call) -> tuple[float, object]:
    """Processor time and result of a call; both evaluators run on one core."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def beside(qrels, run, rounds: int) -> dict[str, float]:
    """Both evaluators in turns; the ratio of ours to theirs and its spread."""
    ours, theirs = [], []

    def pytrec():
        return pytrec_eval.RelevanceEvaluator(qrels, THEIRS).evaluate(run)

    for _ in range(rounds):
        took, mine = seconds(lambda: ranking.evaluate(qrels, run, OURS))
        ours.append(took)
        took, other = seconds(pytrec)
        theirs.append(took)
    for name, key in NAMES.items():
        mean = statistics.fmean(values[key] for values in other.values())
        assert abs(mine[name].mean - mean) < 1e-6, (name, mine[name].mean, mean)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "ours_s": statistics.median(ours),
        "pytrec_eval_s": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
    }


def whole_command(queries: int, documents: int) -> dict[str, float]:
    """From two run files to tables with tests, as a user waits for it."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        qrels, first = make(queries, documents, seed=1)
        generator = np.random.default_rng(2)
        second = {
            query: {n: s + float(generator.normal()) for n, s in listed.items()}
            for query, listed in first.items()
        }
        with (path / "qrels").open("w") as file:
            for query, judged in qrels.items():
                for name, grade in judged.items():
                    file.write(f"{query} 0 {name} {grade}\n")
        for name, run in (("a", first), ("b", second)):
            with (path / name).open("w") as file:
                for query, listed in run.items():
                    order = sorted(listed, key=listed.__getitem__, reverse=True)
                    for rank, document in enumerate(order, 1):
                        score = listed[document]
                        file.write(f"{query} Q0 {document} {rank} {score} {name}\n")
        command = [
            sys.executable,
            "-m",
            "ranker.evaluate",
            "--measures",
            *OURS,
            "PNR",
            "OPA",
        ]
        command += ["--qrels", str(path / "qrels")]
        command += ["--run", str(path / "a"), str(path / "b")]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"seconds": took, "processor_seconds": used.ru_utime + used.ru_stime}


def main() -> None:
    """Prints a line a question, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=6980)
    parser.add_argument("--documents", type=int, default=1000)
    given = parser.parse_args()
    found = {}
    for name, ties in (("metrics", False), ("metrics_with_ties", True)):
        qrels, run = make(given.queries, given.documents, seed=0, ties=ties)
        found[name] = beside(qrels, run, given.rounds)
        print(name, {k: round(v, 3) for k, v in found[name].items()}, flush=True)
        del qrels, run
    found["evaluate_1000_queries_10000_randomisations"] = whole_command(
        min(given.queries, 1000), given.documents
    )
    found["python"] = sys.version.split()[0]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
