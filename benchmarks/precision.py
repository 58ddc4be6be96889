"""What fewer bits cost a MiniLM ranker on real queries, as the export's gate finds it.

    python benchmarks/precision.py --weights MINILM --data NQQED --workdir DIR

Fine-tunes MiniLM by the listwise loss on 200 labelled lists, as the teacher of
configs/evidence.py:nqqed, and exports it with onnx.precision=int8: each candidate
ranks the dev queries, and is accepted or refused by its loss of NDCG@10. A second call
resumes where the first stopped. About a quarter of an hour on one core.

    python benchmarks/precision.py ... --queries 548 --export DIR/export

Runs the gate of an earlier export again, on more dev queries, and saves what it found
in its contract: about ten minutes.
"""

import argparse
import dataclasses
import pathlib

from ranker import config


def pipeline(given: argparse.Namespace) -> config.Pipeline:
    """The evidence's, of the queries and weights that were asked for."""
    there = pathlib.Path(__file__).parent.parent / "configs" / "x"
    found = config.beside(str(there), "evidence.py", "nqqed")
    weights = config.Pretrained(path=given.weights)
    data = dataclasses.replace(
        found.data, path=given.data, max_queries=given.queries, candidates=10
    )
    return dataclasses.replace(found, data=data, teacher=weights, student=weights)


def trained(given, whole, prepared, onnx):
    """Trains and exports; the export's contract."""
    from ranker.serving import contract
    from ranker.training import export, train

    stages = whole.stages()
    train.execute(train.plan(stages["sft"], prepared, given.workdir), replace=True)
    stage = dataclasses.replace(
        stages["export"], stage="sft", onnx=onnx, calibration="none"
    )
    export.execute(export.plan(stage, prepared, given.workdir), replace=True)
    return contract.load_contract(given.workdir / stage.folder)


def gate_again(given, whole, prepared, onnx):
    """Tries the candidates of an earlier export on these queries; its contract."""
    from ranker.data.pairs import ListEncoder
    from ranker.serving import contract, precision
    from ranker.training import served

    promise = contract.load_contract(given.export)
    length = whole.text.teacher_length
    assert promise.length == length, (promise.length, length)
    tokenizer = prepared.tokenizer("teacher")
    encoder = ListEncoder(prepared.corpus(), tokenizer, length)
    lists = served.graded_lists(prepared.lists("dev"), encoder, given.dev)
    train = served.graded_lists(
        prepared.lists("train"), encoder, served.CALIBRATION_LISTS
    )
    rows = [segment for one in train for segment in one.segments]
    found = precision.accept(given.export, promise, onnx, lists, rows)
    found.save(given.export)
    return found


def main() -> None:
    """Trains, exports and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="MiniLM's folder")
    parser.add_argument("--data", required=True, help="nqqed's folder")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--queries", type=int, default=300, help="of a split")
    parser.add_argument("--precision", default="int8", choices=["bfloat16", "int8"])
    parser.add_argument("--margin", type=float, default=0.005)
    parser.add_argument("--dev", type=int, default=2000, help="queries that decide")
    parser.add_argument(
        "--runtimes", nargs="+", default=["openvino", "onnxruntime"], help="of these"
    )
    parser.add_argument("--export", type=pathlib.Path, help="gate it again")
    every = ["bfloat16", "int8", "int8_mixed", "int8_dynamic"]
    parser.add_argument("--files", nargs="+", default=every, help="of these")
    given = parser.parse_args()

    from ranker.data.prepare import prepare, remember
    from ranker.serving import precision
    from ranker.training import served

    served.QUERIES = given.dev
    precision.CANDIDATES = tuple(
        one
        for one in precision.CANDIDATES
        if one.runtime in given.runtimes and one.precision in given.files
    )
    whole = pipeline(given)
    prepared = prepare(whole.data, whole.reading, given.workdir, replace=True)
    remember(prepared, whole.data)
    onnx = config.Onnx(precision=given.precision, margin=given.margin)
    judge = gate_again if given.export else trained
    promise = judge(given, whole, prepared, onnx)
    for name, one in promise.precisions.items():
        said = "accepted" if one["accepted"] else "refused"
        print(
            f"{name} ({one['runtime']}): {said}; {one['queries']} queries, "
            f"{one['measure']} {one['reference']:.4f} to {one['value']:.4f}, at most "
            f"{one['upper']:.4f} lost; tau {one['kendall_tau']:.4f}, "
            f"{one['new_ties']} new ties, first document changed in "
            f"{one['top_changed']:.1%}; {one['speedup']:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
