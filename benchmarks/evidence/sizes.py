"""How much each part reads, trains and measures: "gpu", "cpu" (two cores) or "smoke"."""

from dataclasses import dataclass, field

# Arms of E1 in docs/protocol.md; the first five are those of the two-core size.
MAIN_ARMS = ("labels", "point", "margin", "hybrid", "kl")
ALL_ARMS = (*MAIN_ARMS, "margin_top", "hybrid_top", "soft")


@dataclass(frozen=True)
class Grid:
    """A population of students on one collection."""

    test: int  # queries
    dev: int  # queries
    unlabelled: int  # queries that the teacher scores
    labelled: int  # queries whose grades the arm of labels sees
    candidates: int  # documents a query
    length: int  # tokens a pair
    lists: int  # of a step, with all their candidates
    steps: int
    rates: tuple[float, ...]  # of which each arm's is chosen on dev
    arms: tuple[str, ...] = ALL_ARMS
    seeds: int = 8
    few_seeds: int = 4  # of E0 and E3
    at_once: int = 64  # students of one program


@dataclass(frozen=True)
class Language:
    """E2: one decoder, pre-trained on clicks or not, then fine-tuned."""

    cpt_steps: int  # of `rows` texts
    sft_steps: int
    queries: int  # test queries that are ranked
    seeds: int
    clicks: int = 0  # rows of the log; 0: all


@dataclass(frozen=True)
class Sizes:
    """Every number that a part needs."""

    name: str
    nqqed: Grid
    synthetic: Grid
    teacher_steps: int  # of a teacher, 4 lists a step
    llm_pairs: int  # queries whose candidates the zero-shot LLM scores
    scratch: Language  # E2 of a decoder from scratch
    smollm: Language  # E2 of SmolLM2
    parity_steps: int  # E5
    parity_queries: int  # test queries of E5
    label_sizes: tuple[int, ...] = (50, 200, 1000, 5000)  # lists, E3
    layers: dict[str, str] = field(
        default_factory=lambda: {
            "2": "4,5",
            "3": "0,2,4",
            "4": "0,1,2,4",
            "6": "0,1,2,3,4,5",
        }
    )


_RATES = (5e-5, 1e-4, 3e-4)
_SYNTHETIC = Grid(
    test=4000,
    dev=200,
    unlabelled=4000,
    labelled=300,
    candidates=12,
    length=24,
    lists=4,
    steps=600,
    rates=(5e-4, 1e-3, 2e-3),
)
GPU = Sizes(
    name="gpu",
    nqqed=Grid(3000, 500, 2000, 200, 10, 128, 4, 500, _RATES),
    synthetic=_SYNTHETIC,
    teacher_steps=200,
    llm_pairs=3000,
    scratch=Language(2000, 400, 1000, 4),
    smollm=Language(4000, 200, 1000, 4),
    parity_steps=100,
    parity_queries=1000,
)
CPU = Sizes(
    name="cpu",
    nqqed=Grid(1000, 200, 2000, 200, 10, 128, 4, 250, _RATES, MAIN_ARMS, at_once=1),
    synthetic=Grid(
        4000,
        200,
        4000,
        300,
        12,
        24,
        4,
        600,
        (1e-3, 2e-3),
        (*MAIN_ARMS, "hybrid_top"),
        at_once=1,
    ),
    teacher_steps=100,
    llm_pairs=300,
    scratch=Language(2000, 400, 1000, 2),
    smollm=Language(300, 60, 200, 2),
    parity_steps=60,
    parity_queries=150,
)
SMOKE = Sizes(
    name="smoke",
    nqqed=Grid(
        4, 4, 8, 4, 4, 24, 2, 2, (1e-4,), ALL_ARMS, seeds=2, few_seeds=2, at_once=16
    ),
    synthetic=Grid(
        8, 4, 8, 4, 12, 24, 2, 2, (1e-3,), ALL_ARMS, seeds=2, few_seeds=2, at_once=16
    ),
    teacher_steps=2,
    llm_pairs=2,
    scratch=Language(2, 2, 4, 2),
    smollm=Language(2, 2, 4, 2),
    parity_steps=3,
    parity_queries=4,
    label_sizes=(2, 4),
    layers={"2": "0,1", "3": "0,1", "4": "0,1", "6": "0,1"},
)
SIZES = {one.name: one for one in (GPU, CPU, SMOKE)}
