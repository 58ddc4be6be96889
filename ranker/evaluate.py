"""Evaluates systems on held-out queries: the stages of a workdir, or any TREC files.

python -m ranker.evaluate --config configs/evaluate.py --workdir DIR
[--config.FIELD=VALUE ...]

python -m ranker.evaluate --qrels FILE --run FILE [--run NAME=FILE ...] [--json FILE]
"""

import argparse
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from ranker import cli, config

_EPILOG = """\
Runs are TREC files (query, Q0, document, rank, score, tag), or MS MARCO's 3 columns
(query, document, rank); the order is by score alone, ties by document id from the last
to the first, as trec_eval has it. Every FILE may be gzip, and one may be - for standard
input. The systems of a workdir are measured by --config FILE --workdir DIR instead;
--config FILE --help shows the fields of that form.

  python -m ranker.evaluate --qrels qrels.tsv --run bm25.trec.gz --run ours=run.trec
  ... --run ours@0=first.trec --run ours@1=second.trec       several seeds of a system
  ... --qrels north=A --qrels south=B --run north/ours=C --run south/ours=D
"""


def _call():
    from ranker.training.evaluate import evaluate_systems

    return evaluate_systems


class _Once(argparse.Action):
    """Takes one value, and refuses the flag a second time."""

    def __call__(self, parser, namespace, values, option_string=None):
        """See `argparse.Action`."""
        given = namespace.__dict__.setdefault("_given", set())
        if self.dest in given:
            parser.error(f"{option_string} is given twice; give it once")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ranker.evaluate",
        usage="%(prog)s --qrels FILE --run [NAME=]FILE ... [flags]\n"
        "   or: %(prog)s --config FILE --workdir DIR [--config.FIELD=VALUE ...]",
        description="Evaluates TREC runs against judgements and tests differences.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def add(*names: str, **settings: Any) -> None:
        settings.setdefault("action", _Once)
        parser.add_argument(*names, **settings)

    _add_inputs(add)
    _add_rules(add)
    _add_tests(add)
    file = {"type": pathlib.Path, "metavar": "FILE"}
    add("--json", help="write the summary to FILE", **file)
    add("--per-query", help="write each query's values to FILE (.tsv, .jsonl)", **file)
    add("--markdown", help="write the tables to FILE", **file)
    add("--csv", help="write a line per system and measure to FILE", **file)
    add("--latex", help="write the tables to FILE", **file)
    add("--html", help="write a page with charts to FILE", **file)
    return parser


def _add_inputs(add: Callable[..., Any]) -> None:
    from ranker.metrics.measures import BASES
    from ranker.reporting.inputs import MEASURES

    file = {"type": pathlib.Path, "metavar": "FILE"}
    add(
        "--qrels",
        required=True,
        nargs="+",
        action="extend",
        metavar="[COLLECTION=]FILE",
        help="judgements, TREC or BEIR; repeat for each collection",
    )
    add(
        "--run",
        dest="runs",
        required=True,
        nargs="+",
        action="extend",
        metavar="[[COLLECTION/]NAME[@SEED]=]FILE",
        help="a system's run; repeat for each system, seed and collection",
    )
    add(
        "--measures",
        nargs="+",
        default=MEASURES,
        metavar="MEASURE",
        help=f"any of {', '.join(BASES)}, with a cutoff as in NDCG@10 and parameters "
        "as in P(rel=2)@10, or names of trec_eval and ir_measures; default %(default)s",
    )
    add("--queries", help="query texts (queries.jsonl, TSV): slices by length", **file)
    add("--fields", help="TSV or JSON lines with fields of queries: slices", **file)
    add("--reference", default="", help="system to compare with; default the first")
    add("--teacher", default="", help="system to compare the others' scores with")


def _add_rules(add: Callable[..., Any]) -> None:
    add("--relevance", type=float, default=1, help="lowest relevant grade; default 1")
    add(
        "--complete",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="count judged queries missing from a run as 0 (trec_eval -c)",
    )
    add("--depth", type=int, help="count only the first N documents (trec_eval -M)")
    add(
        "--judged-only",
        action="store_true",
        help="drop documents without a judgement before ranks are counted "
        "(trec_eval -J)",
    )
    add(
        "--ignore-identical-ids",
        action="store_true",
        help="drop a document with the same id as its query",
    )
    add(
        "--complete-pairs",
        action="store_true",
        help="PNR and OPA over all judged pairs; documents not in a run rank last",
    )


def _add_tests(add: Callable[..., Any]) -> None:
    add(
        "--permutations",
        type=int,
        default=10_000,
        help="swaps drawn by the randomisation test; default %(default)s",
    )
    add("--seed", type=int, default=0, help="seed of the randomisation test; default 0")
    add(
        "--equivalence",
        type=float,
        metavar="MARGIN",
        help="test whether differences are reliably smaller than this",
    )
    add(
        "--across-queries",
        action="store_true",
        help="also measure how comparable scores are between queries",
    )


def _evaluate_files(arguments: list[str]) -> None:
    from ranker.errors import ConfigError
    from ranker.metrics.ranking import Rules
    from ranker.reporting import inputs
    from ranker.reporting.trec_files import evaluate_files

    given = vars(_parser().parse_args(arguments))
    given.pop("_given", None)

    def taken(of: type) -> dict[str, Any]:
        return {name: given.pop(name) for name in of.__dataclass_fields__}

    qrels = inputs.name_qrels(given.pop("qrels"))
    runs = inputs.name_runs(given.pop("runs"), list(qrels))
    inputs.check_seeds(runs)
    given["measures"] = tuple(given["measures"])
    try:
        rules = Rules(**taken(Rules))
    except ValueError as error:
        raise ConfigError(f"--{error}") from error
    outputs = inputs.Outputs(**taken(inputs.Outputs))
    evaluate_files(
        inputs.EvaluationFiles(
            **given, qrels=qrels, runs=runs, rules=rules, outputs=outputs
        )
    )


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
