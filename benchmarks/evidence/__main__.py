"""The evidence of docs/protocol.md: part by part, resumable, and what is done of it.

    python benchmarks/evidence --out runs/evidence --status
    python benchmarks/evidence --out runs/evidence --data NQQED --minilm MINILM \
        --smollm SMOLLM2 --medquad MEDQUAD
    python benchmarks/evidence/report.py --out runs/evidence --data NQQED

Parts run in the order of `--status`; `--parts` names some. Finished parts
are skipped, and a killed run resumes within its part, after the last group of students
or the last stage. NQQED and MEDQUAD are BEIR folders with runs/bm25.*, MINILM and
SMOLLM2 Hugging Face folders of all-MiniLM-L6-v2 and SmolLM2-135M-Instruct. `--size` is
gpu or cpu (two cores), one of them in a folder OUT. `--smoke` makes tiny collections
and models and runs each part in seconds.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
sys.path.append(str(pathlib.Path(__file__).resolve().parents[2]))

import parts  # noqa: E402
import report  # noqa: E402
import sizes as sizing  # noqa: E402
from setting import Run  # noqa: E402

from ranker.errors import UserError  # noqa: E402

FLAGS = {
    "data": "BEIR folder of nqqed",
    "medquad": "BEIR folder of MedQuAD",
    "minilm": "folder of all-MiniLM-L6-v2",
    "smollm": "folder of SmolLM2-135M-Instruct",
}


def main() -> None:
    """Says what is done, or runs the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=pathlib.Path, required=True)
    add(
        "--size",
        choices=[name for name in sizing.SIZES if name != "smoke"],
        default="cpu",
    )
    add("--smoke", action="store_true", help="tiny collections and models")
    names = [one.name for one in parts.PARTS]
    add("--parts", nargs="+", choices=names, default=names)
    add("--status", action="store_true", help="say what is done, and stop")
    for name, what in FLAGS.items():
        add(f"--{name}", type=pathlib.Path, help=what)
    args = parser.parse_args()
    args.out = args.out.resolve()
    sizes = sizing.SIZES["smoke" if args.smoke else args.size]
    try:
        sizing.check(args.out, sizes.name)
    except UserError as error:
        parser.error(str(error))
    if args.status:
        header = ["part", "state", "files", "minutes spent", "hours (cpu)", "question"]
        report.table(header, parts.status(args.out, sizes))
        return
    if args.smoke:
        import smoke

        smoke.make(args)
    chosen = [one for one in parts.PARTS if one.name in args.parts]
    for part in chosen:
        missing = [f"--{name}" for name in part.needs if getattr(args, name) is None]
        if missing:
            parser.error(f"{part.name} needs {' and '.join(missing)}")
    args.out.mkdir(parents=True, exist_ok=True)
    sizing.record(args.out, sizes.name)
    run = Run(args, sizes)
    for part in chosen:
        if all((args.out / name).exists() for name in part.files(sizes)):
            print(f"[{part.name}] done before", flush=True)
            continue
        print(f"[{part.name}] {part.says}", flush=True)
        part.run(run)


if __name__ == "__main__":
    main()
