"""How much of the lead of a teacher do clicks alone close: naive, weighted, two towers?

python benchmarks/click_training.py --workdir /tmp/clicks --clicks 30000

Users of a position-based model search the synthetic collection of the quickstart. They
see the first ten results of BM25, a share of the pages shuffled, and click by grade.
The quickstart's teacher, after its cpt, learns to rank from their clicks and no
judgement, once for each way to undo the position, with as many steps:

* naive: lists by query, every click counts 1;
* ips: the same lists, a click counts 1 / the true chance that its rank is looked at;
* ips_fitted: with the chances that `clickmodel` fits to the log;
* two_tower: lists by page, a logit of each position is learned beside the scores;
* ips_learned: lists by query, with the chances that two_tower has learned.

Finished cpt and sft stages of a quickstart in the workdir are reused. The
truth is known, so NDCG is measured on the held-out queries, with paired tests.
`--labels` and `--teacher` are NDCG@10 of the student on the labels alone and of the
teacher, as `ranker.run --config configs/quickstart.py` prints them; the last column is
the share of the way from the one to the other.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterator

import numpy as np

from ranker import config
from ranker.config import loading
from ranker.data.prepare import Prepared, prepare
from ranker.data.world import SearchWorld, grade
from ranker.online import attraction, events, impressions, results, simulate
from ranker.training.evaluate import evaluate_systems
from ranker.training.train import train

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEPTH = 10
BEHAVIOUR = simulate.Behaviour()
ARMS = ("naive", "ips", "ips_fitted", "two_tower", "ips_learned")


def pages_of(prepared: Prepared, world: SearchWorld) -> list[simulate.Page]:
    """What the first stage shows for every query that may be learned from."""
    corpus, pages = prepared.corpus(), []
    for split in ("train", "unlabelled"):
        lists = prepared.lists(split)
        for at in range(len(lists)):
            one = lists[at]
            order = np.argsort(-one.first_stage, kind="stable")[:DEPTH]
            ids = [corpus[int(row)].id for row in one.documents[order]]
            meaning = world.meaning(int(one.query_id[1:]))
            grades = [grade(meaning, world.content(int(name[1:]))) for name in ids]
            pages.append(simulate.Page(one.query, ids, grades))
    r = np.random.default_rng(0)  # which queries are asked often
    return [pages[at] for at in r.permutation(len(pages))]


def until(rows: Iterator[dict[str, object]], clicks: int) -> Iterator[dict]:
    """The rows up to the page of the last click wanted."""
    for _, page in itertools.groupby(rows, key=lambda row: row["page"]):
        taken = list(page)
        clicks -= sum(row["event"] == "click" for row in taken)
        yield from taken
        if clicks <= 0:
            return


def write_lists(
    log: pathlib.Path, path: pathlib.Path, settings: impressions.Settings
) -> dict[str, object]:
    """Lists with their clicks; returns the report."""
    with events.read_log([log], fields=impressions.FIELDS) as read:
        summary, lists = impressions.analyse(read, settings)
        with path.open("w") as file:
            file.writelines(json.dumps(one) + "\n" for one in lists)
    return summary


def fit_looks(log: pathlib.Path) -> tuple[float, ...]:
    """The chances of looking that a position-based model finds in the log."""
    settings = attraction.Settings(depth=DEPTH)
    with events.read_log([log], fields=results.FIELDS) as read:
        summary, _ = attraction.analyse(read, settings)
    return tuple(attraction.as_file(summary)["propensities"])


def make_log(
    given: argparse.Namespace, prepared: Prepared, world: SearchWorld
) -> pathlib.Path:
    """What the users saw and clicked, written to a file."""
    pages = pages_of(prepared, world)
    log = given.workdir / "log.tsv"
    show = simulate.explore(pages, share=given.explore)
    traffic = simulate.Traffic(users=20 * given.clicks, seed=given.seed)
    rows = simulate.make_rows(show, len(pages), traffic, BEHAVIOUR)
    simulate.write_rows(log, until(rows, given.clicks))
    return log


def looks_of(arm: str, log: pathlib.Path, workdir: pathlib.Path) -> tuple[float, ...]:
    """The looking chances by which an arm divides its clicks, if it does."""
    match arm:
        case "ips":
            return BEHAVIOUR.examination[:DEPTH]
        case "ips_fitted":
            return fit_looks(log)
        case "ips_learned":
            return attraction.read_file(workdir / "two_tower" / "looks.json")
    return ()


def train_arm(
    arm: str, base: config.Train, log: pathlib.Path, given: argparse.Namespace
) -> None:
    """Trains from the clicks as the arm reads them."""
    path, pages_too = given.workdir / f"{arm}.jsonl", arm == "two_tower"
    looks = looks_of(arm, log, given.workdir)
    print(f"{arm}: looks {np.round(looks, 3).tolist()}")
    by = "page" if pages_too else "query"
    settings = impressions.Settings(depth=DEPTH, by=by, looks=looks)
    summary = write_lists(log, path, settings)
    train(
        dataclasses.replace(
            base,
            name=arm,
            objective=config.Rank(position_bias=DEPTH if pages_too else 0),
            batch=config.Batch(size=8, list_size=DEPTH),
            loop=config.Loop(steps=given.steps),
            click_lists=str(path),
            judged_lists=False,
            seed=given.seed,
        ),
        given.workdir,
        replace=True,
    )
    print(f"{arm}: {summary['lists']:,} lists, {summary['clicks']:,} clicks")


def compare(measured: config.Evaluate, given: argparse.Namespace) -> None:
    """Prints each arm's NDCG@10, and how much of the teacher's lead it closes."""
    systems = [*given.arms, *(["sft"] if (given.workdir / "sft").is_dir() else [])]
    settings = dataclasses.replace(
        measured, systems=tuple(systems), reference=given.arms[0]
    )
    found = evaluate_systems(settings, given.workdir, replace=True)
    for name, one in found["systems"].items():
        value = one["metrics"]["NDCG@10"]
        closed = (value - given.labels) / (given.teacher - given.labels)
        p = one["p_value"]["NDCG@10"]
        said = "" if p is None else f"  p against {given.arms[0]} {p:.4f}"
        print(f"{name:12} NDCG@10 {value:.4f}  closed {closed:6.1%}{said}")


def main() -> None:
    """Makes the log, trains an arm each, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--clicks", type=int, default=30_000)
    parser.add_argument("--explore", type=float, default=0.3, help="share shuffled")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labels", type=float, default=0.6581)
    parser.add_argument("--teacher", type=float, default=0.8589)
    given = parser.parse_args()
    whole = loading.get_config(str(ROOT / "configs/quickstart.py"))
    stages = whole.stages()
    base, measured = stages["sft"], stages["evaluate"]
    assert isinstance(base, config.Train) and isinstance(measured, config.Evaluate)
    prepared = prepare(whole.data, whole.reading, given.workdir)
    log = make_log(given, prepared, SearchWorld(whole.data.world))
    if not (given.workdir / "cpt").is_dir():
        train(stages["cpt"], given.workdir)
    for arm in given.arms:
        train_arm(arm, base, log, given)
    compare(measured, given)


if __name__ == "__main__":
    main()
