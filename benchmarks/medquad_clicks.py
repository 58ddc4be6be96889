"""Makes a folder of MedQuAD in which clicks are many and judgements few.

    python benchmarks/medquad_clicks.py MEDQUAD FOLDER --labelled 300

Whether continued pre-training helps is a question about such data. The train questions
with their answers become the click log; so many of them keep their judgements, too, and
50 more are there to be scored by the teacher. The dev questions, of the same templates,
are cut in two: 200 to choose a checkpoint by, the others to test on.
"""

import argparse
import csv
import gzip
import json
import pathlib
import random
import shutil

DEV = 200  # questions
UNLABELLED = 50  # questions


def main() -> None:
    """Reads one folder in the BEIR layout and writes the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("medquad", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--labelled", type=int, default=300, help="train questions")
    args = parser.parse_args()
    if not (args.medquad / "corpus.jsonl.gz").is_file():
        parser.error(f"{args.medquad} has no corpus.jsonl.gz: name MedQuAD's folder")
    for name in ("qrels", "runs"):
        (args.folder / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(args.medquad / "corpus.jsonl.gz", args.folder)
    corpus = {
        one["_id"]: one
        for one in map(json.loads, gzip.open(args.folder / "corpus.jsonl.gz", "rt"))
    }
    lines = (args.medquad / "queries.jsonl").read_text().splitlines()
    queries = {one["_id"]: one for one in map(json.loads, lines)}
    judged = {name: judgements(args.medquad, name) for name in ("train", "dev")}

    clicks = [
        {
            "query": queries[query]["text"],
            "document_id": document,
            "title": corpus[document]["title"],
            "summary": corpus[document]["text"],
        }
        for query, document, grade in judged["train"]
        if int(grade) > 0
    ]
    write_lines(args.folder / "clicks.jsonl", clicks)

    train = shuffled(judged["train"])[: args.labelled + UNLABELLED]
    dev = shuffled(judged["dev"])
    kept = {"train": train, "dev": dev[:DEV], "test": dev[DEV:]}
    for split, names in kept.items():
        wanted, source = set(names), "train" if split == "train" else "dev"
        rows = [row for row in judged[source] if row[0] in wanted]
        with (args.folder / "qrels" / f"{split}.tsv").open("w") as file:
            file.write("query-id\tcorpus-id\tscore\n")
            file.writelines("\t".join(row) + "\n" for row in rows)
        (run,) = (args.medquad / "runs").glob(f"bm25.{source}.*")
        with (args.folder / "runs" / f"bm25.{split}.trec").open("w") as file:
            file.writelines(
                line for line in gzip.open(run, "rt") if line.split()[0] in wanted
            )
    all_kept = [queries[name] for names in kept.values() for name in names]
    write_lines(args.folder / "queries.jsonl", all_kept)
    print(
        f"{args.folder}: {len(clicks):,} clicks, "
        + ", ".join(f"{len(names):,} {split}" for split, names in kept.items())
        + " questions"
    )


def judgements(folder: pathlib.Path, split: str) -> list[list[str]]:
    """Rows of (query id, document id, grade) of `qrels/SPLIT.tsv`."""
    with (folder / "qrels" / f"{split}.tsv").open() as file:
        return list(csv.reader(file, delimiter="\t"))[1:]


def shuffled(rows: list[list[str]]) -> list[str]:
    """The query ids of judgements, in an order that is always the same."""
    names = sorted({query for query, *_ in rows})
    random.Random(0).shuffle(names)
    return names


def write_lines(path: pathlib.Path, records: list[dict]) -> None:
    """Writes JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


if __name__ == "__main__":
    main()
