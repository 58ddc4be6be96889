"""The evidence of docs/protocol.md: part by part, resumable, and what is done of it.

    python benchmarks/evidence --out runs/evidence --status
    python benchmarks/evidence --out runs/evidence --size cpu --data NQQED \
        --minilm MINILM --smollm SMOLLM2 --medquad MEDQUAD
    python benchmarks/evidence/report.py --out runs/evidence --data NQQED

Parts run in the order of `--status`; `--parts` names some. What is done is not done
again: a killed run goes on where it was, within a part after the last group of students
or the last stage. NQQED and MEDQUAD are BEIR folders with runs/bm25.*, MINILM and
SMOLLM2 Hugging Face folders of all-MiniLM-L6-v2 and SmolLM2-135M-Instruct. `--smoke`
makes a tiny collection and tiny models, and runs every part in seconds each.
"""

import argparse
import pathlib
import sys

from setting import Run
from sizes import SIZES

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2]))


def main() -> None:
    import students

    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--out", type=pathlib.Path, required=True)
    add("--size", choices=SIZES, default="cpu")
    args = parser.parse_args()
    students.e1_synthetic(Run(args, SIZES[args.size]))


if __name__ == "__main__":
    main()
