r"""All that is measured of a card, in at most nine minutes.

    python benchmarks/gpu.py                     # prints a JSON line a part
    python benchmarks/gpu.py --only pairs-minilm,train-bert-base
    python benchmarks/gpu.py --smoke             # tiny models on a CPU: does it run?

Each part is a process of its own with a time limit, the most wanted first; a part that
fails or runs out of time is reported, and the next one follows. Needs jax for the card,
jaxtyping and transformers; no data, and none of what prepares it.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent


def _pairs(shape: str, queries: int, rows: int, most: int, *more: str) -> list[str]:
    return [
        "rerank_pairs.py",
        f"--shapes={shape}",
        "--dtype=bfloat16",
        f"--queries={queries}",
        f"--rows={rows}",
        f"--most_rows={most}",
        *more,
    ]


def _train(shape: str, size: int, *more: str) -> list[str]:
    return [
        "train_step.py",
        f"--shape={shape}",
        "--dtype=bfloat16",
        f"--size={size}",
        "--steps=8",
        *more,
    ]


# name: (script and arguments, seconds at most)
PARTS: dict[str, tuple[list[str], int]] = {
    "train-bert-base": (_train("bert-base", 8), 90),
    "pairs-minilm": (_pairs("minilm", 400, 256, 1024), 70),
    "pairs-150m": (_pairs("150m", 200, 128, 512), 70),
    "pairs-1b": (_pairs("1b", 80, 64, 256), 80),
    "pairs-qwen2-1.5b": (_pairs("qwen2-1.5b", 80, 64, 256), 80),
    "pairs-qwen2-1.5b-plain": (
        _pairs("qwen2-1.5b", 80, 128, 128, "--plain"),
        60,
    ),
    "pairs-17m": (_pairs("17m", 400, 256, 1024), 60),
    "attention": (["attention.py", "--dtype=bfloat16", "--gpu"], 80),
    "train-qwen3-0.6b": (_train("qwen3-0.6b", 4), 90),
    "train-qwen3-0.6b-plain": (_train("qwen3-0.6b", 4, "--plain"), 90),
    "train-bert-base-no-dropout": (_train("bert-base", 8, "--dropout=0"), 60),
    "pairs-minilm-baseline": (_pairs("minilm", 40, 256, 256, "--baseline"), 60),
}


# The smallest flags of each script, for a trial; the last of a flag counts.
_TRIALS = {
    "train_step.py": [
        *("--size=1", "--list_size=2", "--steps=1", "--rounds=1"),
        "--length=128",  # compiles fast
    ],
    "rerank_pairs.py": [
        *("--queries=2", "--list_size=4", "--rows=2", "--most_rows=2"),
        "--rounds=1",
    ],
    "attention.py": ["--cases=512:150", "--tokens=512", "--heads=2", "--rounds=1"],
}


def trial(command: list[str]) -> list[str]:
    """A part's command with the smallest model of its kind, in float32, on a CPU."""
    script, *flags = command
    if script == "attention.py":
        return [script, *_TRIALS[script]]
    shown = []
    for flag in flags:
        name, _, value = flag.partition("=")
        if name in ("--shape", "--shapes"):
            shown.append(f"{name}={'tiny-decoder' if 'qwen' in value else 'tiny'}")
        elif name in ("--plain", "--baseline", "--dropout"):
            shown.append(flag)
    return [script, *shown, *_TRIALS[script]]


def main() -> None:
    """Runs the parts, and prints what each found; exits with 1 where one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="names of parts, with commas")
    parser.add_argument("--seconds", type=int, default=540, help="in all")
    parser.add_argument("--smoke", action="store_true", help="tiny models, on a CPU")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(
            f"--only {', '.join(unknown)}: no such part; there are {', '.join(PARTS)}"
        )
    environment = {
        **os.environ,
        "PYTHONPATH": f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "TOKENIZERS_PARALLELISM": "true",
    }
    if args.smoke:
        environment["JAX_PLATFORMS"] = "cpu"
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", "/tmp/ranker-gpu-cache")
    end = time.monotonic() + args.seconds
    failed = False
    for name in names:
        command, limit = PARTS[name]
        if args.smoke:
            command = trial(command)
        limit = min(limit, int(end - time.monotonic()))
        result: dict[str, object] = {"part": name}
        if limit < 15:
            result["left_out"] = "no time left"
        else:
            result |= run_part(command, environment, limit)
        failed = failed or "failed" in result
        print(json.dumps(result), flush=True)
    raise SystemExit(int(failed))


def run_part(
    command: list[str], environment: dict[str, str], limit: int
) -> dict[str, object]:
    """What a part printed, its seconds, and how it ended where that was not well."""
    start, result = time.monotonic(), {}
    try:
        done = subprocess.run(
            [sys.executable, str(HERE / command[0]), *command[1:]],
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit,
        )
        given = done.stdout
        if done.returncode:
            result["failed"] = done.stderr[-800:]
    except subprocess.TimeoutExpired as error:
        result["out_of_time"] = limit
        given = error.stdout or ""
        given = given.decode() if isinstance(given, bytes) else given
    lines = [line for line in given.splitlines() if line.startswith("{")]
    result["found"] = [json.loads(line) for line in lines]
    result["seconds"] = round(time.monotonic() - start, 1)
    return result


if __name__ == "__main__":
    main()
