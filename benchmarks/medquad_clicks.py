"""Makes a folder of MedQuAD in which clicks are many and judgements few.

    python benchmarks/medquad_clicks.py MEDQUAD FOLDER

Whether continued pre-training helps is a question about such data. All train questions
with their answers become the click log; 350 of them keep their judgements, of which a
run's `data.labelled_queries` are for training and the others for the teacher to score.
The dev questions are cut in two: 200 to choose a checkpoint by, the others to test on.
"""

import argparse
import json
import pathlib
import random
import shutil

from ranker.data import formats, trec

TRAIN = 350  # questions that keep their judgements
DEV = 200  # questions


def main() -> None:
    """Reads one folder in the BEIR layout and writes the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("medquad", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    args = parser.parse_args()
    source = args.medquad / "corpus.jsonl.gz"
    if not source.is_file():
        parser.error(f"{args.medquad} has no corpus.jsonl.gz: name MedQuAD's folder")
    (args.folder / "qrels").mkdir(parents=True, exist_ok=True)
    shutil.copy(source, args.folder)
    corpus = {one.id: one for one in formats.read_corpus(source)}
    queries = {
        one.id: one.text for one in formats.read_queries(args.medquad / "queries.jsonl")
    }
    judged, runs = {}, {}
    for name in ("train", "dev"):
        judged[name] = trec.load_qrels(args.medquad / "qrels" / f"{name}.tsv").grades
        (path,) = (args.medquad / "runs").glob(f"bm25.{name}.*")
        runs[name] = trec.load_run(path).scores

    clicks = [
        {
            "query": queries[query],
            "document_id": document,
            "title": corpus[document].title,
            "summary": corpus[document].text,
        }
        for query, grades in judged["train"].items()
        for document, grade in grades.items()
        if grade > 0
    ]
    write_lines(args.folder / "clicks.jsonl", clicks)

    train, dev = shuffled(judged["train"]), shuffled(judged["dev"])
    splits = {
        "train": ("train", train[:TRAIN]),
        "dev": ("dev", dev[:DEV]),
        "test": ("dev", dev[DEV:]),
    }
    for split, (name, kept) in splits.items():
        wanted = set(kept)
        with (args.folder / "qrels" / f"{split}.tsv").open("w") as file:
            file.write("query-id\tcorpus-id\tscore\n")
            for query, grades in judged[name].items():
                if query in wanted:
                    rows = (f"{query}\t{one}\t{grades[one]}\n" for one in grades)
                    file.writelines(rows)
        run = {query: runs[name][query] for query in kept if query in runs[name]}
        formats.write_run(args.folder / "runs" / f"bm25.{split}.trec", run, tag="bm25")
    ids = [query for _, kept in splits.values() for query in kept]
    lines = [{"_id": query, "text": queries[query]} for query in ids]
    write_lines(args.folder / "queries.jsonl", lines)
    sizes = ", ".join(f"{len(kept):,} {split}" for split, (_, kept) in splits.items())
    print(f"{args.folder}: {len(clicks):,} clicks, {sizes} questions")


def shuffled(judged: dict[str, dict[str, int]]) -> list[str]:
    """The query ids of judgements, in an order that is always the same."""
    names = sorted(judged)
    random.Random(0).shuffle(names)
    return names


def write_lines(path: pathlib.Path, records: list[dict]) -> None:
    """Writes JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


if __name__ == "__main__":
    main()
