"""Measures systems on held-out queries: the stages of a workdir, or any TREC files.

python -m ranker.evaluate --config configs/evaluate.py --workdir DIR
[--config.FIELD=VALUE ...]

python -m ranker.evaluate --qrels FILE --run FILE [--run NAME=FILE ...] [--json FILE]
"""

import argparse
import pathlib
import sys

from ranker import cli, config

_EPILOG = """\
Runs are TREC files: query, Q0, document, rank, score, tag; the order is by score alone,
ties by document id from the last to the first, as trec_eval has it. Every FILE may be
gzip. The systems of a workdir are measured by --config FILE --workdir DIR instead;
--config FILE --help shows the fields of that form.

  python -m ranker.evaluate --qrels qrels.tsv --run bm25.trec.gz --run ours=run.trec
"""


def _call():
    from ranker.training.evaluate import evaluate

    return evaluate


def _parser() -> argparse.ArgumentParser:
    from ranker.metrics.ranking import MEASURES, PAIR_MEASURES
    from ranker.reporting.trec_files import Files

    parser = argparse.ArgumentParser(
        prog="python -m ranker.evaluate",
        usage="%(prog)s --qrels FILE --run [NAME=]FILE ... [flags]\n"
        "   or: %(prog)s --config FILE --workdir DIR [--config.FIELD=VALUE ...]",
        description="Measures TREC runs against judgements, and tests the differences.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    file = {"type": pathlib.Path, "metavar": "FILE"}
    add = parser.add_argument
    add("--qrels", required=True, help="judgements, TREC or BEIR", **file)
    add(
        "--run",
        dest="runs",
        required=True,
        nargs="+",
        action="extend",
        metavar="[NAME=]FILE",
        help="a system's run; again for each system",
    )
    add(
        "--measures",
        nargs="+",
        default=Files.measures,
        metavar="MEASURE",
        help=f"of {', '.join([*MEASURES, *PAIR_MEASURES])}, with a cut as in NDCG@10; "
        "default %(default)s",
    )
    add("--reference", default="", help="system to compare with; default the first")
    add("--relevance", type=int, default=1, help="lowest relevant grade; default 1")
    add(
        "--complete",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="judged queries that a run lacks count 0 (trec_eval -c)",
    )
    add("--depth", type=int, help="documents of each query that count (trec_eval -M)")
    add(
        "--permutations",
        type=int,
        default=Files.permutations,
        help="of the randomisation test, and samples of the bootstrap; default "
        "%(default)s",
    )
    add("--seed", type=int, default=0, help="of both; default 0")
    add("--teacher", default="", help="system whose scores the others' are set beside")
    add("--queries", help="texts (queries.jsonl or TSV): slices by length", **file)
    add("--fields", help="TSV or JSON lines, a field a column: slices by it", **file)
    add("--json", help="write the summary there", **file)
    add("--per-query", help="write each query's values there, .tsv or .jsonl", **file)
    add("--markdown", help="write the tables there", **file)
    return parser


def _evaluate_files(arguments: list[str]) -> None:
    from ranker.reporting.trec_files import Files, evaluate_files, name_runs

    given = vars(_parser().parse_args(arguments))
    runs = name_runs(given.pop("runs"))
    given["measures"] = tuple(given["measures"])
    summary = evaluate_files(Files(**given, runs=runs))
    for note in summary["notes"]:
        print(f"note: {note}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """Chooses between the two forms by their flags."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if any(one.partition("=")[0] == "--config" for one in arguments):
        cli.main(
            config.Evaluate, _call, "Measures systems on held-out queries.", arguments
        )
    else:
        cli.sentences(lambda: _evaluate_files(arguments))


if __name__ == "__main__":
    main()
