"""Tables and figures of what was run, by the tests of docs/protocol.md.

    python benchmarks/evidence/report.py --out runs/evidence --data NQQED

Reads what `python benchmarks/evidence` wrote, however much of it is there; prints
Markdown and draws OUT/figures/*.png. No accelerator is needed.
"""

import argparse
import dataclasses
import json
import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2]))

import lists  # noqa: E402
import numpy as np  # noqa: E402
from contrasts import Contrast, across, contrast, tau, within  # noqa: E402
from lists import Collection  # noqa: E402
from sizes import SIZES  # noqa: E402

from ranker.metrics.significance import holm  # noqa: E402
from ranker.reporting.charts import Interval  # noqa: E402
from ranker.reporting.figures import write_intervals  # noqa: E402

COSINE = "MiniLM's cosine, untrained"
PRIMARY = (("hybrid", "point"), ("hybrid", "margin"))


@dataclasses.dataclass(frozen=True)
class Part:
    """Students of one part: S seeds, Q queries, K candidates."""

    dev: dict[str, np.ndarray]  # name -> [S, Q, K]
    test: dict[str, np.ndarray]  # empty where test was not scored
    rates: dict[str, float]
    seconds: dict[str, float]  # of a student
    parameters: int


def load(folder: pathlib.Path) -> Part:
    """The finished students of a part: of every name the seeds that all names have."""
    found: dict[str, dict[str, dict[int, np.ndarray]]] = {"dev": {}, "test": {}}
    rates, seconds, parameters = {}, {}, 0
    for path in sorted(folder.glob("[0-9]*.npz")):
        file = np.load(path)
        members = json.loads(str(file["members"]))
        parameters = int(file["parameters"]) if "parameters" in file else 0
        for split, by_name in found.items():
            if split not in file or not file[split].size:
                continue
            for (name, _, seed, _, _), scores in zip(members, file[split], strict=True):
                by_name.setdefault(name, {})[seed] = scores
        for name, _, _, rate, _ in members:
            rates[name] = rate
            seconds[name] = float(file["seconds"]) / len(members)
    kept = {}
    for split, by_name in found.items():
        seeds = set.intersection(*map(set, by_name.values())) if by_name else set()
        kept[split] = {
            name: np.stack([scores[seed] for seed in sorted(seeds)])
            for name, scores in by_name.items()
            if seeds
        }
    return Part(kept["dev"], kept["test"], rates, seconds, parameters)


def deviation(means: np.ndarray) -> float:
    """Standard deviation over seeds; NaN of one."""
    return float(means.std(ddof=1)) if len(means) > 1 else float("nan")


def table(header: list[str], rows: list[list[str]]) -> None:
    """Prints a Markdown table."""
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def contrast_rows(found: dict[str, Contrast], primary: dict[str, float]):
    """Rows of a table; Holm's correction is over the primary contrasts."""
    corrected = holm(primary)
    return [
        [
            name + (" (primary)" if name in primary else ""),
            f"{one.difference:+.4f}",
            f"{one.low:+.4f} to {one.high:+.4f}",
            f"{one.p:.4f}",
            f"{corrected[name]:.4f}" if name in corrected else "",
            f"{one.equivalent:.4f}",
        ]
        for name, one in found.items()
    ]


CONTRAST = ["contrast", "difference", "95 %", "p", "p (Holm)", "p (equivalence)"]


def draw(path: pathlib.Path, found: dict[str, Contrast], label: str) -> None:
    """A figure of differences; those whose interval leaves 0 out stand out."""
    rows = [
        Interval(name, one.difference, one.low, one.high, one.low * one.high > 0)
        for name, one in found.items()
    ]
    write_intervals(path, rows, label)


# --- parts ----------------------------------------------------------------------------


def losses(data: Collection, part: Part, teacher: np.ndarray, figure) -> None:
    """E1: a row an arm, the contrasts, and how far each arm is from BM25."""
    rows, values = [], {}
    for name, scores in part.test.items():
        test = data.parts["test"][: scores.shape[1]]
        dev = data.parts["dev"][: part.dev[name].shape[1]]
        values[name] = data.ndcg(scores, test)
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
                str(len(means)),
                f"{means.mean():.4f} ({deviation(means):.4f})",
                f"{tau(scores, teacher[test]).mean():.3f}",
                f"{within(scores, data.grades[test]):.4f}",
                f"{cross:.4f}",
                f"{error:.4f}",
            ]
        )
    header = ["arm", "rate", "seeds", "NDCG@10 (sd)", "tau", "pairs within", "across"]
    table([*header, "ECE"], rows)
    names = [one for one in PRIMARY if set(one) <= set(values)]
    names += [(one, "labels") for one in values if one != "labels"]
    found = {f"{a} - {b}": contrast(values[a], values[b]) for a, b in names}
    primary = {f"{a} - {b}": found[f"{a} - {b}"].p for a, b in PRIMARY}
    table(CONTRAST, contrast_rows(found, primary))
    bm25 = data.ndcg(data.bm25[test], test)
    gain = data.ndcg(teacher[test], test).mean() - bm25.mean()
    above = {
        f"{name} - BM25": contrast(one, np.broadcast_to(bm25, one.shape))
        for name, one in values.items()
    }
    for name, one in above.items():
        print(
            f"- {name}: {one.difference:+.4f} ({one.low:+.4f} to {one.high:+.4f}), "
            f"p {one.p:.4f}; {one.difference / gain:.0%} of the teacher's gain"
        )
    print()
    draw(figure, {**found, **above}, "difference in NDCG@10, 95 % intervals")


def sizes(data: Collection, part: Part) -> None:
    """E0: a row a kind of student, on dev."""
    rows = []
    for name, scores in part.dev.items():
        dev = data.parts["dev"][: scores.shape[1]]
        means = data.ndcg(scores, dev).mean(1)
        spread = f"{deviation(means):.4f}"
        rows.append([name, str(len(means)), f"{means.mean():.4f}", spread])
    table(["students", "seeds", "NDCG@10 on dev", "sd over seeds"], rows)


def labels(data: Collection, part: Part, figure: pathlib.Path) -> None:
    """E3: students of labels beside the distilled one."""
    values = {}
    for name, scores in part.test.items():
        values[name] = data.ndcg(scores, data.parts["test"][: scores.shape[1]])
    rows = [[name, f"{one.mean():.4f}"] for name, one in values.items()]
    table(["student", "NDCG@10"], rows)
    distilled = values.pop("distilled")
    found = {f"distilled - {n}": contrast(distilled, one) for n, one in values.items()}
    table(CONTRAST, contrast_rows(found, {}))
    draw(figure, found, "NDCG@10, distilled less labelled")


def runs(out: pathlib.Path, pattern: str, qrels: pathlib.Path) -> np.ndarray:
    """NDCG@10 [S, Q] of TREC runs, a seed each, on the judged queries in order."""
    from ranker.data import formats, trec
    from ranker.metrics import ranking

    judged = trec.load_qrels(qrels).grades
    found = []
    for path in sorted(out.glob(pattern)):
        run: dict[str, dict[str, float]] = {}
        for one in formats.read_run(path):
            run.setdefault(one.query_id, {})[one.document_id] = one.score
        measured = ranking.evaluate(judged, run, ("NDCG@10",))["NDCG@10"]
        values = dict(zip(measured.queries, measured.values, strict=True))
        found.append([values[query] for query in sorted(judged)])
    return np.float64(found)


def pretraining(out: pathlib.Path, name: str, qrels: pathlib.Path) -> None:
    """E2 of one decoder on one collection: its arms and their contrasts."""
    values = {
        arm: runs(out / name, f"{arm}-*/evaluate/sft.trec", qrels)
        for arm in ("none", "shuffled", "clicks")
    }
    seeds = min(map(len, values.values()))
    values = {arm: one[:seeds] for arm, one in values.items()}
    bm25 = runs(out / name, "none-0/evaluate/bm25.trec", qrels)
    if not seeds:
        print("no seed has all three arms yet\n")
        return
    rows = [["BM25", "", f"{bm25.mean():.4f}"]]
    rows += [[arm, str(seeds), f"{one.mean():.4f}"] for arm, one in values.items()]
    table(["arm", "seeds", "NDCG@10"], rows)
    names = [("clicks", "shuffled"), ("clicks", "none"), ("shuffled", "none")]
    found = {f"{a} - {b}": contrast(values[a], values[b]) for a, b in names}
    spread = np.broadcast_to(bm25, values["clicks"].shape)
    found["clicks - BM25"] = contrast(values["clicks"], spread)
    primary = {"clicks - shuffled": found["clicks - shuffled"].p}
    table(CONTRAST, contrast_rows(found, primary))
    draw(out / "figures" / f"{name}.png", found, f"difference in NDCG@10, {name}")


def parity(out: pathlib.Path, qrels: pathlib.Path) -> None:
    """E5: ours less sentence-transformers'."""
    ours = runs(out / "e5", "ours-*.trec", qrels)
    theirs = runs(out / "e5", "theirs/sft-*.trec", qrels)[: len(ours)]
    spent = [
        json.loads(path.read_text())["families"]["sft"]["seconds"]
        for path in sorted((out / "e5").glob("parity-*.json"))
    ]
    rows = [
        [name, str(len(values)), f"{values.mean():.4f}", f"{np.mean(seconds):.0f}"]
        for name, values, seconds in (
            ("ours", ours, [one["ours"] for one in spent]),
            ("theirs", theirs, [one["sentence_transformers"] for one in spent]),
        )
    ]
    table(["trained by", "seeds", "NDCG@10", "seconds of training"], rows)
    found = {"ours - theirs": contrast(ours, theirs)}
    table(CONTRAST, contrast_rows(found, {}))
    draw(out / "figures" / "e5.png", found, "NDCG@10, ours less theirs")


# --- E4: the order of systems ---------------------------------------------------------


def systems(data: Collection, out: pathlib.Path) -> dict[str, tuple]:
    """Name -> (scores [S, Q, K] on test, seconds, parameters) of what is there."""
    test = data.parts["test"]
    shuffled = np.random.default_rng(0).random(data.grades[test].shape)
    found: dict[str, tuple] = {
        "random order": (shuffled[None], 0.0, 0),
        "BM25": (data.bm25[test][None], 0.0, 0),
    }
    for says, folder in {
        COSINE: "e4-cosine",
        "untrained SmolLM2, likelihood": "e4-likelihood",
    }.items():
        if (out / folder / "000.npz").exists():
            found[says] = chunks(out / folder)
    for name, says in {
        "minilm": "fine-tuned MiniLM",
        "smollm": "fine-tuned SmolLM2, the teacher",
    }.items():
        path = out / f"teacher_{name}.npy"
        if path.exists():
            scores = np.load(path)[test]
            kept = int(np.isfinite(scores).all(1).sum())
            cost = {"seconds": np.nan, "parameters": 0}
            if path.with_suffix(".json").exists():
                cost = json.loads(path.with_suffix(".json").read_text())
            found[says] = (scores[None, :kept], *cost.values())
    for says, pattern in {
        "untrained SmolLM2, yes or no": "e4-yes_no",
        "fine-tuned SmolLM2": "e2-smollm-nqqed/none-*",
        "fine-tuned SmolLM2 after clicks": "e2-smollm-nqqed/clicks-*",
    }.items():
        folders = [
            one for one in sorted(out.glob(pattern)) if (one / "seconds").exists()
        ]
        if folders:
            spent = [json.loads((one / "seconds").read_text()) for one in folders]
            scores = [
                trec_scores(one / "evaluate" / "sft.trec", data) for one in folders
            ]
            seconds = float(np.mean([one["seconds"] for one in spent]))
            found[says] = (np.stack(scores), seconds, spent[0]["parameters"])
    folder = out / "e1-minilm"
    if folder.exists():
        part = load(folder)
        for arm in ("labels", "hybrid"):
            says = {"labels": "MiniLM's four layers on labels", "hybrid": "distilled"}[
                arm
            ]
            if arm in part.test:
                cost = part.seconds[arm]
                found[says] = (part.test[arm], cost, part.parameters)
    return found


def chunks(folder: pathlib.Path) -> tuple[np.ndarray, float, int]:
    """Scores [1, Q, K] of files of `untrained.in_chunks`, to the first missing."""
    files = []
    while (path := folder / f"{len(files):03d}.npz").exists():
        files.append(np.load(path))
    scores = np.concatenate([one["test"] for one in files])
    seconds = sum(float(one["seconds"]) for one in files)
    return scores[None], seconds, int(files[0]["parameters"])


def trec_scores(path: pathlib.Path, data: Collection) -> np.ndarray:
    """Scores [Q, K] of a TREC run, of the first test queries that it has."""
    from ranker.data import formats

    run = {(one.query_id, one.document_id): one.score for one in formats.read_run(path)}
    rows = [r for r in data.parts["test"] if (data.ids[r], data.documents[r][0]) in run]
    return np.float32([[run[data.ids[r], d] for d in data.documents[r]] for r in rows])


def less(values: np.ndarray, baseline: np.ndarray) -> str:
    """Difference from a baseline [Q] and its interval, on the queries of both."""
    queries = min(values.shape[1], len(baseline))
    values = values[:, :queries]
    found = contrast(values, np.broadcast_to(baseline[:queries], values.shape))
    return f"{found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def order(data: Collection, out: pathlib.Path) -> None:
    """E4: every system's NDCG@10, its difference from two baselines, and its cost."""
    rows, levels = [], []
    there = systems(data, out)
    values = {
        name: data.ndcg(scores, data.parts["test"][: scores.shape[1]])
        for name, (scores, _, _) in there.items()
    }
    baselines = [one for one in ("BM25", COSINE) if one in values]
    for name, found in values.items():
        _, seconds, parameters = there[name]
        level = contrast(found, np.zeros_like(found))
        against = [
            "" if name == one else less(found, values[one][0]) for one in baselines
        ]
        rows.append(
            [
                name,
                f"{len(found)} x {found.shape[1]:,}",
                f"{found.mean():.4f} ({level.low:.4f} to {level.high:.4f})",
                *against,
                f"{seconds:.0f}" if seconds == seconds else "",
                f"{parameters / 1e6:.1f} M" if parameters else "",
            ]
        )
        levels.append(Interval(name, found.mean(), level.low, level.high, True))
    header = ["system", "seeds x queries", "NDCG@10 (95 %)"]
    header += [f"less {one} (95 %)" for one in baselines]
    table([*header, "seconds", "parameters"], rows)
    write_intervals(out / "figures" / "e4.png", levels, "NDCG@10", zero=False)


def main() -> None:
    """Prints what there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=pathlib.Path, required=True, help="BEIR folder of nqqed")
    add("--out", type=pathlib.Path, required=True)
    add("--smoke", action="store_true", help="of a run with --smoke")
    add("--without", nargs="*", default=[], help="arms that are left out, of E1")
    args = parser.parse_args()
    out = args.out
    # The split is the same at every size; a part has its first queries.
    grid = SIZES["smoke" if args.smoke else "gpu"].nqqed
    data = lists.read(args.data, grid)
    print("### E4: the order of systems, nqqed\n")
    order(data, out)
    for folder in sorted(out.glob("e1-*")):
        if folder.name.endswith("-rates"):
            continue
        part, name = load(folder), folder.name.removeprefix("e1-")
        test = {k: one for k, one in part.test.items() if k not in args.without}
        if not test:
            continue
        part = dataclasses.replace(part, test=test)
        print(f"### E1: which loss, {name}\n")
        figure = out / "figures" / f"{folder.name}.png"
        if name == "synthetic":
            import pipelines

            made = lists.prepared(out / "synthetic" / "prepare")
            teacher = pipelines.synthetic_scores(out / "synthetic", made)
            losses(made, part, teacher, figure)
        else:
            losses(data, part, np.load(out / f"teacher_{name}.npy"), figure)
    for folder in sorted(out.glob("e0-*")):
        print(f"### E0: {folder.name}\n")
        sizes(data, load(folder))
    if (out / "e3").exists() and load(out / "e3").test:
        print("### E3: labels or a teacher\n")
        labels(data, load(out / "e3"), out / "figures" / "e3.png")
    for folder in sorted(out.glob("e2-*")):
        _, model, name = folder.name.split("-")
        print(f"### E2: {folder.name}\n")
        qrels = out / "folders" / f"{name}-{model}" / "qrels" / "test.tsv"
        pretraining(out, folder.name, qrels)
    if list(out.glob("e5/parity-*.json")):
        print("### E5: parity with sentence-transformers\n")
        parity(out, out / "folders" / "parity" / "qrels" / "test.tsv")


if __name__ == "__main__":
    main()
