"""Online evaluation: python -m ranker.online COMMAND --log FILE [flags].

The commands are ab, interleave, power, aa, gsb, clickmodel, counterfactual,
impressions, clicks and simulate; COMMAND --help shows the flags of one. None needs jax.
"""

import argparse
import dataclasses
import datetime
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ranker import cli
from ranker.errors import ConfigError, DataError

_LOG = """\
The log has one row an event: TSV with a header, JSON lines or Parquet; files, folders
and globs. Columns: time, user, page, event (page or click); and where there are any:
session, query, arm, document_id, position, dwell, latency, team, propensity, score,
triggered. docs/online.md describes them.
"""
Report = dict[str, Any]


# --- flags ---


def _file(add: Callable[..., Any], name: str, text: str, **more: Any) -> None:
    add(name, type=pathlib.Path, metavar="FILE", help=text, **more)


def _outputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _file(add, "--json", "write the report there")
    _file(add, "--html", "write a page with plots there")
    _file(add, "--markdown", "write the tables there")


def _inputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--log", nargs="+", required=True, metavar="FILE", help="files of the log")
    add(
        "--columns",
        nargs="+",
        default=[],
        action="extend",
        metavar="FIELD=COLUMN",
        help="names of the log's columns, if different: time=ts user=cookie",
    )
    add("--memory", default="1500MB", help="limit of DuckDB; default %(default)s")
    add("--threads", type=int, default=2, help="for DuckDB; default %(default)s")


def _rules(parser: argparse.ArgumentParser) -> None:
    from ranker.online.pages import PageRules

    texts = {
        "dwell_cap": "seconds that a dwell counts at most",
        "satisfied": "seconds of dwell of a satisfied click",
        "gap": "seconds without an event that end a session",
        "refresh": "seconds within which the same query again is a reload",
        "bot_pages": "pages of a user on one day, above which it is left out",
        "similarity": "share of letters that a reformulated query keeps",
        "censored": "clicks without a known dwell: leave-out, or cap",
    }
    group = parser.add_argument_group("rules")
    for one in dataclasses.fields(PageRules):
        group.add_argument(
            "--" + one.name.replace("_", "-"),
            type=type(one.default),
            default=one.default,
            help=f"{texts[one.name]}; default %(default)s",
        )


def _time(text: str) -> float:
    """Seconds since 1970, from that or from an ISO time (UTC where it has no zone)."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected seconds since 1970 or an ISO time such as "
            "2026-11-27 or 2026-11-27T12:00"
        ) from error
    if found.tzinfo is None:
        found = found.replace(tzinfo=datetime.UTC)
    return found.timestamp()


def _before(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--before",
        type=_time,
        metavar="TIME",
        help="start of the test; earlier pages are the pre-period (CUPED)",
    )


def _level(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--level", type=float, default=0.95, help="confidence level")


def _pairs(items: Sequence[str], flag: str) -> dict[str, str]:
    found = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"{flag} {item}: expected NAME=VALUE")
        found[name] = value
    return found


def _number(flag: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{flag} {text}: expected a number") from None


def _make_rules(given: argparse.Namespace) -> Any:
    from ranker.online.pages import PageRules

    return PageRules(
        **{one.name: getattr(given, one.name) for one in dataclasses.fields(PageRules)}
    )


def _read(given: argparse.Namespace, fields: Sequence[str], more: Sequence[str] = ()):
    from ranker.online import events

    return events.read_log(
        given.log,
        fields=fields,
        more=more,
        mapping=_pairs(given.columns, "--columns"),
        memory=given.memory,
        threads=given.threads,
    )


def _load_runs(
    items: Sequence[str], flag: str
) -> dict[str, dict[str, dict[str, float]]]:
    from ranker.data import trec

    return {
        name: trec.load_run(pathlib.Path(path)).scores
        for name, path in _pairs(items, flag).items()
    }


def _queries(path: pathlib.Path | None) -> dict[str, str]:
    from ranker.data import trec

    return trec.load_queries(path) if path else {}


# --- commands ---


def _ab_flags(parser: argparse.ArgumentParser) -> None:
    from ranker.online.measures import MEASURES

    add = parser.add_argument
    _inputs(parser)
    _before(parser)
    add(
        "--primary",
        default="PageCTR",
        help=f"the one measure that decides, of {', '.join(MEASURES)}; the others are "
        "corrected by Holm; default %(default)s",
    )
    add("--control", default="", help="arm to compare with")
    add("--shares", nargs="+", default=[], metavar="ARM=WEIGHT", help="planned split")
    add("--srm", choices=["stop", "report"], default="stop", help="on a bad split")
    add("--segment", nargs="+", default=[], metavar="COLUMN", help="columns of the log")
    add("--sequential", action="store_true", help="always-valid p-values by day")
    add(
        "--planned-users",
        type=int,
        default=5000,
        help="users at which the sequential interval is narrowest; default %(default)s",
    )
    add(
        "--trigger",
        choices=["", "column", "results"],
        default="",
        help="analyse the pages with different results in the arms: by the column "
        "triggered, or by the shown results",
    )
    add(
        "--trigger-runs",
        nargs=2,
        metavar="ARM=RUN",
        help="the same from two TREC runs: queries whose top results differ",
    )
    add("--depth", type=int, default=10, help="results compared by --trigger-runs")
    _file(add, "--queries", "texts of the runs' queries, if the log has texts")
    _level(parser)
    _rules(parser)


def _ab(given: argparse.Namespace) -> Report:
    from ranker.online import experiment, pages

    differing = frozenset()
    if given.trigger_runs:
        a, b = _load_runs(given.trigger_runs, "--trigger-runs").values()
        differing = _differing(a, b, given.depth, _queries(given.queries))
    settings = experiment.Settings(
        primary=given.primary,
        control=given.control,
        before=given.before,
        level=given.level,
        shares={
            arm: _number("--shares", weight)
            for arm, weight in _pairs(given.shares, "--shares").items()
        },
        srm=given.srm,
        segments=tuple(given.segment),
        sequential=given.sequential,
        planned=given.planned_users,
        trigger="queries" if given.trigger_runs else given.trigger,
        trigger_queries=differing,
        rules=_make_rules(given),
    )
    with _read(given, pages.FIELDS, given.segment) as log:
        return experiment.analyse(log, settings)


def _differing(
    a: Mapping[str, Mapping[str, float]],
    b: Mapping[str, Mapping[str, float]],
    depth: int,
    texts: Mapping[str, str],
) -> frozenset[str]:
    """Queries, as ids and as texts, that two runs answer differently."""

    def top(run: Mapping[str, float]) -> list[str]:
        return sorted(run, key=lambda one: (run[one], one), reverse=True)[:depth]

    found = {
        query for query in {*a, *b} if top(a.get(query, {})) != top(b.get(query, {}))
    }
    return frozenset(found | {texts[query] for query in found if query in texts})


def _interleave_flags(parser: argparse.ArgumentParser) -> None:
    from ranker.online.preference import CREDITS

    add = parser.add_argument
    _inputs(parser)
    add("--credit", choices=CREDITS, default="clicks", help="what a click is worth")
    add(
        "--by",
        choices=["team", "score"],
        default="team",
        help="ranker that a click counts for: the result's team, or its logged credit, "
        "above 0 for a (optimised and probabilistic interleaving)",
    )
    add("--names", nargs="+", default=[], metavar="TEAM=NAME", help="display names")
    _level(parser)
    _rules(parser)


def _interleave(given: argparse.Namespace) -> Report:
    from ranker.online import preference

    settings = preference.Settings(
        credit=given.credit,
        by=given.by,
        level=given.level,
        names=_pairs(given.names, "--names"),
        rules=_make_rules(given),
    )
    with _read(given, preference.FIELDS) as log:
        return preference.analyse(log, settings)


def _power_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _inputs(parser)
    _before(parser)
    add(
        "--lift",
        type=float,
        nargs="+",
        default=[0.005, 0.01, 0.02, 0.05],
        help="relative lifts to find, such as 0.01; default %(default)s",
    )
    add("--power", type=float, default=0.8, help="target; default %(default)s")
    add("--users", type=int, help="also the power with this many users in both arms")
    add("--primary", default="PageCTR", help="measure; default %(default)s")
    add(
        "--share", type=float, default=1.0, help="share of traffic; default %(default)s"
    )
    _level(parser)
    _rules(parser)


def _power(given: argparse.Namespace) -> Report:
    from ranker.online import planning

    settings = planning.Settings(
        lifts=tuple(given.lift),
        power=given.power,
        users=given.users,
        measure=given.primary,
        share=given.share,
        level=given.level,
        before=given.before,
        rules=_make_rules(given),
    )
    with _read(given, planning.FIELDS) as log:
        return planning.forecast(log, settings)


def _aa_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _inputs(parser)
    _before(parser)
    add("--splits", type=int, default=1000, help="random splits; default %(default)s")
    add("--seed", type=int, default=0, help="of the splits; default %(default)s")
    _level(parser)
    _rules(parser)


def _aa(given: argparse.Namespace) -> Report:
    from ranker.online import planning

    settings = planning.Settings(
        splits=given.splits,
        seed=given.seed,
        level=given.level,
        before=given.before,
        rules=_make_rules(given),
    )
    with _read(given, planning.FIELDS) as log:
        return planning.aa_report(log, settings)


def _gsb_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--run", nargs="+", action="extend", metavar="NAME=FILE", help="two TREC runs")
    _file(add, "--sheet", "TSV to write, or the filled one to read", required=True)
    _file(add, "--key", "JSON that says which side is whose", required=True)
    add(
        "--judged", action="store_true", help="read the judges' verdicts from the sheet"
    )
    _file(add, "--queries", "texts of queries (queries.jsonl or TSV)")
    _file(add, "--documents", "texts of documents (corpus.jsonl)")
    add("--depth", type=int, default=5, help="results per side; default %(default)s")
    add("--count", type=int, help="queries in the sheet; default all that differ")
    add("--salt", default="", help="changes the random queries and sides")
    _level(parser)


def _gsb(given: argparse.Namespace) -> Report:
    from ranker import storage
    from ranker.online import sidebyside

    if given.judged:
        try:
            key = storage.read_json(given.key)
            names, same = key["names"], key["same"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{given.key}: is not a key of a sheet ({error}); it was written "
                "beside the sheet"
            ) from error
        try:
            text = given.sheet.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{given.sheet}: cannot be read ({error})") from error
        verdicts = sidebyside.read_verdicts(str(given.sheet), text, key)
        return sidebyside.judge(
            verdicts, same=len(same), level=given.level, names=names
        )
    runs = _load_runs(given.run or [], "--run")
    if len(runs) != 2:
        raise ConfigError(
            f"gsb compares two runs, found {len(runs)}: --run OLD=a.trec NEW=b.trec"
        )
    sheet = sidebyside.make_sheet(
        runs,
        queries=_queries(given.queries),
        documents=_texts(given.documents, runs) if given.documents else None,
        depth=given.depth,
        count=given.count,
        salt=given.salt,
    )
    text, key = sidebyside.write_sheet(sheet)
    storage.write_text(given.sheet, text)
    storage.write_text(given.key, key + "\n")
    return {
        "command": "gsb",
        "sheet": str(given.sheet),
        "key": str(given.key),
        "names": list(sheet.names),
        "queries": len(sheet.rows),
        "unchanged": len(sheet.same),
        "notes": [
            f"fill the column verdict with {', '.join(sidebyside.VERDICTS)}; keep the "
            f"key from the judges; then: --judged --sheet {given.sheet} --key "
            f"{given.key}"
        ],
    }


def _texts(path: pathlib.Path, runs: Mapping[str, Any]) -> dict[str, str]:
    from ranker.data import formats

    wanted = {d for run in runs.values() for scores in run.values() for d in scores}
    return {
        one.id: one.title or one.text
        for one in formats.read_corpus(path, unique=False)
        if one.id in wanted
    }


def _clickmodel_flags(parser: argparse.ArgumentParser) -> None:
    from ranker.online.clickmodels import MODELS

    add = parser.add_argument
    _inputs(parser)
    add(
        "--model",
        nargs="+",
        choices=[*MODELS, "all"],
        default=["pbm"],
        help="models to fit; default %(default)s",
    )
    add("--depth", type=int, default=10, help="results per page; default %(default)s")
    add(
        "--held-out",
        type=float,
        default=0.2,
        help="share of users held out to measure the fit; default %(default)s",
    )
    add(
        "--prior",
        type=float,
        default=2.0,
        help="trials seen before the data, of every parameter, with the mean of all; "
        "default %(default)s",
    )
    add("--iterations", type=int, default=200, help="maximum; default %(default)s")
    _file(add, "--out", "write the looking chances by rank there (JSON)")
    _file(add, "--attraction", "write query, document and attraction there (TSV)")
    _rules(parser)


def _clickmodel(given: argparse.Namespace) -> Report:
    from ranker import storage
    from ranker.online import attraction, results

    settings = attraction.Settings(
        models=tuple(given.model),
        depth=given.depth,
        held_out=given.held_out,
        prior=given.prior,
        iterations=given.iterations,
        rules=_make_rules(given),
    )
    with _read(given, results.FIELDS) as log:
        summary, pairs = attraction.analyse(log, settings)
    if given.out:
        storage.write_json(given.out, attraction.as_file(summary))
    if given.attraction:
        lines = ["query\tdocument_id\tattraction\tshown"]
        lines += [f"{q}\t{d}\t{a:.6f}\t{n}" for q, d, a, n in pairs]
        storage.write_text(given.attraction, "\n".join(lines) + "\n")
    return summary


def _counterfactual_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _inputs(parser)
    add(
        "--run",
        nargs="+",
        required=True,
        action="extend",
        metavar="NAME=FILE",
        help="rankings to estimate (TREC runs)",
    )
    _file(add, "--queries", "texts of the runs' queries, if the log has texts")
    _file(add, "--propensities", "probability of looking by rank (clickmodel --out)")
    add("--depth", type=int, default=10, help="results per page; default %(default)s")
    add("--clip", type=float, default=10.0, help="largest weight; default %(default)s")
    _level(parser)
    _rules(parser)


def _counterfactual(given: argparse.Namespace) -> Report:
    from ranker.online import attraction, counterfactual

    looks = attraction.read_file(given.propensities) if given.propensities else ()
    settings = counterfactual.Settings(
        depth=given.depth,
        clip=given.clip,
        level=given.level,
        looks=looks,
        rules=_make_rules(given),
    )
    texts = _queries(given.queries)
    runs = {
        name: {
            key: order
            for query, scores in run.items()
            for order in [sorted(scores, key=lambda d: (scores[d], d), reverse=True)]
            for key in {query, texts.get(query, query)}
        }
        for name, run in _load_runs(given.run, "--run").items()
    }
    with _read(given, counterfactual.FIELDS) as log:
        return counterfactual.analyse(log, runs, settings)


def _impressions_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _inputs(parser)
    _file(add, "--out", "lists to write (JSON lines), for sft", required=True)
    _file(add, "--propensities", "probability of looking by rank (clickmodel --out)")
    add("--clip", type=float, default=20.0, help="largest weight; default %(default)s")
    add("--depth", type=int, default=10, help="results per page; default %(default)s")
    add(
        "--least",
        type=int,
        default=1,
        help="minimum pages per query; default %(default)s",
    )
    add(
        "--by",
        choices=["query", "page"],
        default="query",
        help="one list per query with all results shown for it, or one list per page "
        "with positions (to learn a position bias); default %(default)s",
    )
    _rules(parser)


def _impressions(given: argparse.Namespace) -> Report:
    import json

    from ranker import storage
    from ranker.online import attraction, impressions

    looks = attraction.read_file(given.propensities) if given.propensities else ()
    settings = impressions.Settings(
        depth=given.depth,
        looks=looks,
        clip=given.clip,
        least=given.least,
        by=given.by,
        rules=_make_rules(given),
    )
    with _read(given, impressions.FIELDS) as log:
        summary, lists = impressions.analyse(log, settings)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with storage.writing(given.out, "w") as file:
        for one in lists:
            file.write(json.dumps(one, ensure_ascii=False) + "\n")
    return {**summary, "out": str(given.out)}


def _clicks_flags(parser: argparse.ArgumentParser) -> None:
    _inputs(parser)
    _file(parser.add_argument, "--out", "click log to write (Parquet)", required=True)
    _rules(parser)


def _clicks(given: argparse.Namespace) -> Report:
    from ranker.online import clicklog

    if given.out.suffix != ".parquet":
        raise ConfigError(f"--out {given.out}: expected a name in .parquet")
    settings = clicklog.Settings(rules=_make_rules(given))
    with _read(given, clicklog.FIELDS) as log:
        return {
            **clicklog.write_click_log(log, settings, given.out),
            "out": str(given.out),
        }


def _simulate_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _file(add, "--log", "log to write, .tsv or .jsonl", required=True)
    add(
        "--design",
        choices=["ab", "interleave", "explore"],
        default="ab",
        help="users split between systems, pages shared by them, or the first system's "
        "pages shuffled now and then (with propensities); default %(default)s",
    )
    add(
        "--noise",
        nargs="+",
        default=["A=6", "B=4"],
        metavar="SYSTEM=NOISE",
        help="systems that order the synthetic collection's documents by grade plus so "
        "much uniform noise; default %(default)s",
    )
    add("--run", nargs="+", metavar="SYSTEM=FILE", help="systems: TREC runs instead")
    _file(add, "--qrels", "grades of the runs' documents")
    add("--model", choices=["pbm", "cascade", "dbn"], default="pbm", help="click model")
    add("--users", type=int, default=2000, help="default %(default)s")
    add("--days", type=int, default=14, help="default %(default)s")
    add("--pages", type=float, default=5.0, help="per user; default %(default)s")
    add("--depth", type=int, default=10, help="results per page; default %(default)s")
    add(
        "--explore",
        type=float,
        default=0.5,
        help="share of shuffled pages; default %(default)s",
    )
    add("--seed", type=int, default=0, help="random seed; default %(default)s")


def _simulate(given: argparse.Namespace) -> Report:
    from ranker.online import simulate

    if given.log.suffix not in (".tsv", ".jsonl"):
        raise ConfigError(f"--log {given.log}: expected a name in .tsv or .jsonl")
    for flag in ("users", "days", "pages", "depth"):
        if getattr(given, flag) < 1:
            raise ConfigError(f"--{flag} {getattr(given, flag)}: expected 1 or more")
    if not 0 < given.explore <= 1:
        raise ConfigError(f"--explore {given.explore}: expected above 0, at most 1")
    systems = _systems(given)
    if len(systems) < 2 and given.design != "explore":
        raise ConfigError(
            f"--design {given.design} needs two systems, found {len(systems)}"
        )
    behaviour = simulate.Behaviour(model=given.model)
    first = next(iter(systems.values()))
    designs = {
        "ab": lambda: simulate.split_users(systems),
        "interleave": lambda: simulate.mix(systems, length=given.depth),
        "explore": lambda: simulate.explore(first, share=given.explore),
    }
    traffic = simulate.Traffic(
        users=given.users, days=given.days, pages=given.pages, seed=given.seed
    )
    rows = simulate.make_rows(designs[given.design](), len(first), traffic, behaviour)
    count = simulate.write_rows(given.log, rows)
    asked = simulate.popularity(len(first))
    ctr = {
        name: simulate.page_ctr(pages, behaviour, asked)
        for name, pages in systems.items()
    }
    clicks = {
        name: simulate.clicks_a_page(pages, behaviour, asked)
        for name, pages in systems.items()
    }
    base = next(iter(ctr.values()))
    return {
        "command": "simulate",
        "out": str(given.log),
        "rows": count,
        "design": given.design,
        "model": given.model,
        "queries": len(first),
        "examination": list(behaviour.examination[: given.depth]),
        "systems": {
            name: {
                "PageCTR": ctr[name],
                "clicks_per_page": clicks[name],
                "lift": ctr[name] / base - 1,
            }
            for name in systems
        },
        "notes": ["simulated: users, clicks and dwell are made up"],
    }


def _systems(given: argparse.Namespace) -> dict[str, list[Any]]:
    """Pages of each system, of the same queries."""
    from ranker.online import simulate

    if given.run:
        if not given.qrels:
            raise ConfigError("--run needs --qrels: users like documents by grade")
        from ranker.data import trec

        return simulate.pages_of_runs(
            _load_runs(given.run, "--run"),
            trec.load_qrels(given.qrels).grades,
            given.depth,
        )
    from ranker import config
    from ranker.data.world import SearchWorld, grade

    settings = config.World()
    world = SearchWorld(settings)
    listed = []
    for index in world.splits()["test"]:
        rows = world.candidates(index)
        grades = [grade(world.meaning(index), world.content(row)) for row in rows]
        listed.append((world.query(index).text, [f"d{row}" for row in rows], grades))
    return {
        name: simulate.rank_by_grade(
            listed, _number("--noise", noise), depth=given.depth, seed=given.seed
        )
        for name, noise in _pairs(given.noise, "--noise").items()
    }


COMMANDS: dict[str, tuple[str, Callable[..., None], Callable[..., Report]]] = {
    "ab": ("compare arms of an A/B test", _ab_flags, _ab),
    "interleave": ("which ranker users prefer", _interleave_flags, _interleave),
    "power": ("users and days that a lift needs", _power_flags, _power),
    "aa": ("false positives of each measure on this log", _aa_flags, _aa),
    "clickmodel": (
        "who looks where: click models and propensities",
        _clickmodel_flags,
        _clickmodel,
    ),
    "counterfactual": (
        "what users would have clicked in other rankings",
        _counterfactual_flags,
        _counterfactual,
    ),
    "impressions": (
        "lists with labels from clicks, to train on",
        _impressions_flags,
        _impressions,
    ),
    "clicks": ("a click log of the event log, for cpt", _clicks_flags, _clicks),
    "simulate": ("a log with a known truth", _simulate_flags, _simulate),
    "gsb": ("a blind side-by-side sheet, and its verdicts", _gsb_flags, _gsb),
}


def _parser(command: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ranker.online",
        description="From a log of pages and clicks to a decision.",
        epilog=_LOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, flags, _) in COMMANDS.items():
        one = parsers.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=_LOG if name not in ("gsb", "simulate") else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name == command:  # the others need not be imported
            flags(one)
            _outputs(one)
    return parser


def _run(arguments: list[str]) -> None:
    command = next((one for one in arguments if not one.startswith("-")), None)
    given = _parser(command).parse_args(arguments)
    summary = COMMANDS[given.command][2](given)
    from ranker import storage
    from ranker.reporting import online, tables

    grids = online.grids(summary)
    tables.show(grids)
    for note in summary.get("notes", []):
        print(f"note: {note}", file=sys.stderr)
    for path in (given.json, given.html, given.markdown):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
    if given.json:
        storage.write_json(given.json, summary)
    if given.markdown:
        storage.write_text(given.markdown, "\n".join(map(tables.markdown, grids)))
    if given.html:
        storage.write_text(given.html, online.render(summary))
    if summary.get("stopped"):
        print(f"error: {summary['stopped']}", file=sys.stderr)
        raise SystemExit(2)


def main(arguments: list[str] | None = None) -> None:
    """Runs one command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cli.sentences(lambda: _run(given))


if __name__ == "__main__":
    main()
