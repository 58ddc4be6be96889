"""What do chunks, digests, atomic writes and the proof cost, beside the scoring?

    python benchmarks/score_overhead.py [--rounds 5] [--chunk_pairs 2048]

The quickstart's teacher (2 layers, 128 wide: the smallest one that anybody would use,
so that the overhead weighs most) scores pairs of the synthetic collection as a job, a
few times
over. Time in what a job does beside the scoring (listings, chunks and receipts with
their digests and fsync, the manifest, the proof at the end) is set against the time of
the scoring alone; listing the input, to cut it, is given apart. Chunks are small; with
the default of 32768 pairs the overhead is smaller. The last line is one JSON object; it
fails above 3 %.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from ranker import config
from ranker.scoring import job as jobs
from ranker.scoring import pairs, proof
from ranker.training import score as teacher
from ranker.training.train import train

LIMIT = 0.03
CHUNKS = 4


class Clock:
    """Adds up the time inside functions of a module."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def watch(self, module, name: str) -> None:
        """Times every call of `module.name`."""
        real = getattr(module, name)

        def timed(*args, **kwargs):
            begin = time.perf_counter()
            try:
                found = real(*args, **kwargs)
                return iter(list(found)) if isinstance(found, Iterator) else found
            finally:
                took = time.perf_counter() - begin
                self.seconds[name] = self.seconds.get(name, 0.0) + took

        setattr(module, name, timed)


def watch_job() -> Clock:
    """Times what a job does beside the scoring, and the scoring."""
    clock = Clock()
    for name in ("open_job", "save_chunk", "save_quarantine"):
        clock.watch(jobs, name)
    clock.watch(proof, "verify")
    clock.watch(pairs.ListPairs, "chunks")
    for name in ("code_digest", "score_lists"):
        clock.watch(teacher, name)
    return clock


def small_teacher(**stage: Any) -> config.Train:
    """The quickstart's teacher after one step."""
    return config.Train(
        **stage,
        name="sft",
        model=config.Decoder(
            num_layers=2,
            embed_dim=128,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            mlp_dim=384,
        ),
        objective=config.Rank(),
        optim=config.Optim(learning_rate=1e-3, warmup=0),
        batch=config.Batch(size=8),
        loop=config.Loop(steps=1),
    )


@dataclasses.dataclass(frozen=True)
class Measured:
    """One round: seconds of a job."""

    scoring: float
    listing: float  # the input
    beside: dict[str, float]  # function -> all else
    pairs: int

    @property
    def overhead(self) -> float:
        """What is neither scoring nor listing, over the scoring."""
        return sum(self.beside.values()) / self.scoring


def measure(clock: Clock, job: config.Score, workdir: pathlib.Path) -> Measured:
    """Scores everything as a new job."""
    clock.seconds.clear()
    manifest = teacher.score_chunks(job, workdir)
    assert manifest is not None
    scoring = clock.seconds.pop("score_lists")
    listing = clock.seconds.pop("chunks")
    clock.seconds["open_job"] -= listing  # it is called from there
    return Measured(scoring, listing, dict(clock.seconds), manifest.facts["pairs"])


def summary(rounds: list[Measured], chunk_pairs: int) -> dict[str, Any]:
    """What the last line says."""
    ratios = [one.overhead for one in rounds]
    means = {
        name: sum(one.beside[name] for one in rounds) / len(rounds)
        for name in rounds[0].beside
    }
    listings = [one.listing / one.scoring for one in rounds]
    speeds = [one.pairs / one.scoring for one in rounds]
    return {
        "overhead": round(statistics.median(ratios), 5),
        "from": round(min(ratios), 5),
        "to": round(max(ratios), 5),
        "listing_the_input": round(statistics.median(listings), 5),
        "rounds": len(rounds),
        "chunk_pairs": chunk_pairs,
        "pairs_per_second": round(statistics.median(speeds)),
        "seconds": {name: round(value, 4) for name, value in means.items()},
    }


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunk_pairs", type=int, default=2048)
    options = parser.parse_args()
    world = config.World(labelled_queries=50, dev_queries=0, test_queries=1, clicks=100)
    world = dataclasses.replace(
        world, unlabelled_queries=options.chunk_pairs * CHUNKS // world.candidates
    )
    stage = dict(data=config.Data(world=world), text=config.Text(teacher_length=32))
    clock, rounds = watch_job(), []
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        train(small_teacher(**stage), workdir)
        for number in range(options.rounds + 1):
            job = config.Score(
                **stage,
                name=f"scores{number}",
                splits=("unlabelled",),
                chunk_pairs=options.chunk_pairs,
            )
            rounds.append(measure(clock, job, workdir))
    result = summary(rounds[1:], options.chunk_pairs)  # the first one compiled
    print(json.dumps(result))
    if result["overhead"] >= LIMIT:
        sys.exit(f"the overhead is {result['overhead']:.2%}, over {LIMIT:.0%}")


if __name__ == "__main__":
    main()
