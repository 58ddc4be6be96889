"""What each part reads, trains and measures, at size "gpu", "cpu" or "smoke"."""

import dataclasses
import pathlib
from dataclasses import dataclass

from ranker import storage
from ranker.errors import ConfigError, DataError, shown

RECORD = "size.json"  # in OUT: the size of its parts

# Arms of E1 in docs/protocol.md; the first four are those of the two-core size.
MAIN_ARMS = ("labels", "point", "margin", "hybrid", "kl")
ALL_ARMS = (*MAIN_ARMS, "margin_top", "hybrid_top", "soft")


@dataclass(frozen=True)
class Grid:
    """A population of students on one collection."""

    test: int  # queries that are ranked, the first of the split
    dev: int  # queries that choose rates, the first of the split
    unlabelled: int  # queries that the teacher scores
    labelled: int  # queries whose grades the arm of labels sees
    candidates: int  # documents a query
    length: int  # tokens a pair
    lists: int  # of a step, with all their candidates
    steps: int
    rates: tuple[float, ...]  # of which each arm's is chosen on dev
    arms: tuple[str, ...] = ALL_ARMS
    seeds: int = 8
    few_seeds: int = 4  # of E3
    trials: int = 4  # seeds of E0
    at_once: int = 64  # students of one program
    cuts: tuple[int, int] = (3000, 500)  # queries of the splits test and dev
    scored: int = 2000  # of the unlabelled, that students learn from


@dataclass(frozen=True)
class Language:
    """E2: a decoder, pre-trained on clicks or not, then fine-tuned on labels."""

    cpt_steps: int
    sft_steps: int
    length: int  # tokens a pair
    rows: int  # of that length, a step of cpt
    seeds: int
    rank: int = 0  # of adapters; 0: all weights train


@dataclass(frozen=True)
class Sizes:
    """Every number that a part needs."""

    name: str
    nqqed: Grid
    synthetic: Grid
    teacher_steps: int  # of MiniLM as a teacher, 4 lists a step
    queries: int  # test queries of E2 on nqqed and of E4's LLM
    medquad_queries: int  # 0: all of its test questions
    scratch: Language  # E2 of a decoder from scratch, on MedQuAD
    smollm: Language  # E2 of SmolLM2
    parity_steps: int
    parity_seeds: int
    parity_queries: int  # test queries of E5
    label_sizes: tuple[int, ...] = (50, 200, 1000, 5000)  # lists, E3
    layers: tuple[tuple[str, str], ...] = (
        ("2", "4,5"),
        ("3", "0,2,4"),
        ("4", "0,1,2,4"),
        ("6", "0,1,2,3,4,5"),
    )

    def kept(self, layers: str) -> str:
        """The layers of MiniLM that a student of so many has."""
        return dict(self.layers)[layers]


_RATES = (5e-5, 1e-4, 3e-4)
GPU = Sizes(
    name="gpu",
    nqqed=Grid(3000, 500, 2000, 200, 10, 128, 4, 500, _RATES),
    synthetic=Grid(
        4000,
        200,
        4000,
        300,
        12,
        24,
        4,
        600,
        (5e-4, 1e-3, 2e-3),
        cuts=(4000, 200),
        scored=4000,
    ),
    teacher_steps=200,
    queries=1000,
    medquad_queries=0,
    scratch=Language(2000, 400, 128, 16, seeds=4),
    smollm=Language(3000, 100, 128, 4, seeds=4, rank=16),
    parity_steps=100,
    parity_seeds=8,
    parity_queries=600,
)
CPU = Sizes(
    name="cpu",
    nqqed=Grid(
        600,
        200,
        2000,
        200,
        10,
        128,
        4,
        250,
        (1e-4, 3e-4),
        MAIN_ARMS[:4],
        at_once=1,
        trials=2,
        scored=1000,
    ),
    synthetic=dataclasses.replace(
        GPU.synthetic, rates=(1e-3, 2e-3), arms=(*MAIN_ARMS, "hybrid_top"), at_once=1
    ),
    teacher_steps=100,
    queries=200,
    medquad_queries=200,
    scratch=Language(2000, 400, 128, 16, seeds=2),
    smollm=Language(300, 60, 128, 4, seeds=2, rank=16),
    parity_steps=60,
    parity_seeds=8,
    parity_queries=150,
)
_TINY = Grid(
    8,
    4,
    8,
    4,
    4,
    24,
    2,
    2,
    (1e-3,),
    ("labels", "point", "margin", "hybrid"),
    seeds=2,
    few_seeds=2,
    trials=2,
    at_once=8,
    cuts=(8, 4),
)
SMOKE = Sizes(
    name="smoke",
    nqqed=_TINY,
    synthetic=_TINY,
    teacher_steps=2,
    queries=4,
    medquad_queries=4,
    scratch=Language(2, 2, 96, 4, seeds=1),
    smollm=Language(2, 2, 160, 4, seeds=1, rank=2),
    parity_steps=3,
    parity_seeds=1,
    parity_queries=6,
    label_sizes=(2, 4),
    layers=(("2", "0"), ("3", "1"), ("4", "0,1"), ("6", "0,1")),
)
SIZES = {one.name: one for one in (GPU, CPU, SMOKE)}


def check(out: pathlib.Path, size: str) -> None:
    """Checks that OUT holds no part of another size: no table can mix two.

    A folder without a record, such as one of an earlier version, may have any size.

    Raises:
      ConfigError: when its parts have another size.
      DataError: when the record is not what `record` writes.
    """
    path = out / RECORD
    if not path.exists():
        return
    try:
        found = storage.read_json(path)
    except ValueError as error:
        raise DataError(f"{path}: {error}; {_repair(size)}") from error
    had = found.get("size") if isinstance(found, dict) else None
    if had not in SIZES:
        raise DataError(f"{path}: found {shown(found)}; {_repair(size)}")
    if had != size:
        raise ConfigError(
            f"{out} holds parts of {_flag(had)}, not of {_flag(size)}; "
            f"give {_flag(had)} to continue them, or another folder as --out"
        )


def record(out: pathlib.Path, size: str) -> None:
    """Says in OUT which size its parts have."""
    if not (out / RECORD).exists():
        storage.write_json(out / RECORD, {"size": size})


def _flag(size: str) -> str:
    return "--smoke" if size == "smoke" else f"--size {size}"


def _repair(size: str) -> str:
    return f'if the parts there are of {_flag(size)}, write {{"size": "{size}"}} to it'
